"""A causal model cut in two before its unembedding, so that logits need never all be in memory.

Whatever an architecture does behind its final norm (a bias, a soft cap, a scale) is done by its own
code: the model runs on with given hidden states in the place of its blocks' result.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.lm.protocol import ModelOutput

N_TRIED = 5
INNER = ("decoder", "language_model", "text_model")
"""Modules of a base model that some models run in its place."""
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""In standard deviations of the logits: above rounding, below what a forgotten soft cap does."""
HALF_PRECISION_TOLERANCE = 0.1


class _Reached(Exception):  # noqa: N818 - no error: the pass has come as far as it should
    def __init__(self, output: Any) -> None:  # noqa: ANN401 - transformers has no common class
        super().__init__()
        self.output = output


class OutputHead:
    """What a transformers model does with its last hidden states."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - transformers has no common class
        self._model = model
        self._blocks: nn.Module
        self._kind: Any = None

    def run(
        self, forward: Callable[[], Tensor], seen: dict[str, Tensor] | None = None
    ) -> ModelOutput:
        """What `forward` gives, which returns the model's logits; it ends before they are made.

        Where the model cannot be cut, the logits are made.
        """
        seen = {} if seen is None else seen
        if self.d_vocab is None:
            return ModelOutput(forward(), seen)
        hidden = self._hidden(forward)
        assert hidden is not None
        return ModelOutput(hidden, seen, self, self.d_vocab)

    def __call__(self, hidden: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
        """The logits of some positions; gradients flow through where they are enabled."""
        tokens = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        with self._instead(self._kind(last_hidden_state=hidden[None])):
            return self._model(input_ids=tokens).logits[0]

    @cached_property
    def d_vocab(self) -> int | None:
        """The number of logits; None if the model cannot be cut, tried on a few tokens."""
        base = self._model.base_model
        for blocks in (base, *(getattr(base, name, None) for name in INNER)):
            if isinstance(blocks, nn.Module) and blocks is not self._model:
                self._blocks = blocks
                if (n := self._tried()) is not None:
                    return n
        return None

    @torch.no_grad()
    def _tried(self) -> int | None:
        """The number of logits, if what runs the blocks is `_blocks` and the rest reads no more."""
        if "forward" in vars(self._blocks):
            return None
        device = next(self._model.parameters()).device
        tokens = (
            torch.arange(N_TRIED, device=device)[None]
            % self._model.config.get_text_config().vocab_size
        )

        def forward() -> Tensor:
            return self._model(input_ids=tokens).logits

        whole, hidden = forward()[0], self._hidden(forward)
        if hidden is None or not hasattr(self._kind, "last_hidden_state"):
            return None
        # Turned around, so that a rest which depends on the position is found out.
        found = self(hidden[0].flip(0)).flip(0)
        tolerance = TOLERANCE.get(whole.dtype, HALF_PRECISION_TOLERANCE)
        same = found.shape == whole.shape and (found - whole).abs().max() < tolerance * whole.std()
        return whole.shape[-1] if same else None

    def _hidden(self, forward: Callable[[], Tensor]) -> Float[Tensor, "batch pos d_model"] | None:
        """What the unembedding would read; None if the blocks are not run as one module."""
        with self._stop():
            try:
                forward()
            except _Reached as reached:
                self._kind = type(reached.output)
                return reached.output[0]
        return None

    @contextmanager
    def _stop(self) -> Iterator[None]:
        def reached(_: nn.Module, __: object, output: object) -> None:
            raise _Reached(output)

        handle = self._blocks.register_forward_hook(reached)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _instead(self, output: object) -> Iterator[None]:
        """Let the blocks return `output`, whatever they are given."""
        self._blocks.forward = lambda *_, **__: output
        try:
            yield
        finally:
            del self._blocks.forward

"""A causal model split before its unembedding, so that all logits never need to be in memory.

An architecture's own code computes what follows the final norm (a bias, a soft cap, a scale): the
model runs with given hidden states instead of its blocks' result.
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
"""Modules of a base model that some models run instead of the whole base model."""
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""In standard deviations of the logits: above rounding, below the effect of a forgotten soft
cap."""
HALF_PRECISION_TOLERANCE = 0.1


class _Reached(Exception):  # noqa: N818 - no error: the pass has come as far as it should
    def __init__(self, output: Any) -> None:  # noqa: ANN401 - transformers has no common class
        super().__init__()
        self.output = output


class OutputHead:
    """The part of a transformers model that maps its last hidden states to logits."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - transformers has no common class
        self._model = model
        self._blocks: nn.Module
        self._kind: Any = None

    def run(
        self, forward: Callable[[], Tensor], seen: dict[str, Tensor] | None = None
    ) -> ModelOutput:
        """The input of the unembedding in a call of `forward`, which ends before logits are made.

        If the model cannot be split, the result is the logits.
        """
        seen = {} if seen is None else seen
        if self.d_vocab is None:
            return ModelOutput(forward(), seen)
        hidden = self._hidden(forward)
        assert hidden is not None
        return ModelOutput(hidden, seen, self, self.d_vocab)

    def __call__(self, hidden: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
        """The logits of some positions; differentiable if gradients are enabled."""
        tokens = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        with self._instead(self._kind(last_hidden_state=hidden[None])):
            return self._model(input_ids=tokens).logits[0]

    @cached_property
    def d_vocab(self) -> int | None:
        """The number of logits; None if the model cannot be split, tested on a few tokens."""
        base = self._model.base_model
        for blocks in (base, *(getattr(base, name, None) for name in INNER)):
            if isinstance(blocks, nn.Module) and blocks is not self._model:
                self._blocks = blocks
                if (n := self._tried()) is not None:
                    return n
        return None

    @torch.no_grad()
    def _tried(self) -> int | None:
        """The number of logits; None unless `_blocks` is all that the rest depends on."""
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
        # In reverse order, to detect a rest that depends on the position.
        found = self(hidden[0].flip(0)).flip(0)
        tolerance = TOLERANCE.get(whole.dtype, HALF_PRECISION_TOLERANCE)
        same = found.shape == whole.shape and (found - whole).abs().max() < tolerance * whole.std()
        return whole.shape[-1] if same else None

    def _hidden(self, forward: Callable[[], Tensor]) -> Float[Tensor, "batch pos d_model"] | None:
        """The input of the unembedding; None if the blocks are not run as one module."""
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
        """Make the blocks return `output`, whatever their input."""
        self._blocks.forward = lambda *_, **__: output
        try:
            yield
        finally:
            del self._blocks.forward

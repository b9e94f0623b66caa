"""A language model run through TransformerLens: the one module that names transformer_lens."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from saelab.config import UsageError
from saelab.lm.direct import DirectPaths
from saelab.lm.effects import LogitEffects
from saelab.lm.gradients import next_token_loss, site_gradients, tracked
from saelab.lm.head import OutputHead
from saelab.lm.hooks import Hook, captured, check_applied, per_token, reader, replacer
from saelab.lm.key_value_past import KeyValuePast
from saelab.lm.protocol import Edit, ModelInfo, ModelOutput
from saelab.lm.reading import Past, continues
from saelab.lm.tokenizer import HuggingFaceTokenizer
from saelab.sites import Site


class _Probed:
    """The bridge, as `DirectPaths` needs it."""

    def __init__(self, bridge: TransformerBridge) -> None:
        self._bridge = bridge
        self.n_layers = bridge.cfg.n_layers
        self.points = bridge.hook_dict

    @property
    def unembedding(self) -> Tensor:
        return self._bridge.W_U

    def linear_at(self, hook: str) -> nn.Module | None:
        for module in self._bridge.blocks[Site.of(hook).layer].modules():
            inner = getattr(module, "original_component", None)
            at = getattr(module, "hook_in", None)
            if at is self.points[hook] and isinstance(inner, nn.Module):
                return inner
        return None

    def run(self, tokens: Tensor, hooks: Sequence[tuple[str, Hook]]) -> Tensor:
        return self._bridge.run_with_hooks(tokens, fwd_hooks=list(hooks), return_type="logits")


class BridgeLanguageModel:
    """A frozen causal model on TransformerLens hook names, with raw (unprocessed) weights."""

    def __init__(self, bridge: TransformerBridge, info: ModelInfo) -> None:
        self._bridge = bridge.eval().requires_grad_(requires_grad=False)
        self._continues = cache(lambda: continues(self))
        self._direct = cache(lambda: DirectPaths(_Probed(self._bridge)))
        self._info = info
        self._head = OutputHead(bridge.original_model)
        self._tokenizer = HuggingFaceTokenizer(bridge.tokenizer)
        self._widths: dict[str, int] = {}

    @property
    def info(self) -> ModelInfo:
        """Identity and shape of the model."""
        return self._info

    @property
    def tokenizer(self) -> HuggingFaceTokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self._bridge.W_U.device

    def hooks(self) -> list[str]:
        """Every hook name of the model, whether or not it fires in a plain forward pass."""
        return sorted(self._bridge.hook_dict)

    def width(self, hook: str) -> int:
        """d_in of a site, heads flattened head-major.

        Raises:
            UsageError: the hook does not exist, or has no vector per token.
        """
        if hook not in self._widths:
            self._check_exists(hook)
            probe = torch.zeros(1, 2, dtype=torch.long, device=self.device)
            self._widths[hook] = self.capture(probe, [hook])[hook].shape[-1]
        return self._widths[hook]

    @torch.no_grad()
    def capture(
        self, tokens: Int[Tensor, "batch pos"], hooks: Sequence[str]
    ) -> dict[str, Float[Tensor, "batch pos d_in"]]:
        """Activations at `hooks` from one forward pass that stops after the last of them.

        Raises:
            UsageError: a hook does not exist, does not fire, or has no vector per token.
        """
        for hook in hooks:
            self._check_exists(hook)
        seen = captured(hooks, tokens, lambda functions: self._forward(tokens, functions))
        self._check_fired(hooks, seen)
        return seen

    @torch.enable_grad()
    def gradients(
        self,
        tokens: Int[Tensor, "batch pos"],
        hooks: Sequence[str],
        real: Bool[Tensor, "batch pos"],
    ) -> tuple[
        dict[str, Float[Tensor, "batch pos d_in"]], dict[str, Float[Tensor, "batch pos d_in"]]
    ]:
        """Activations at `hooks`, and dL/dx of the summed next-token loss there.

        Raises:
            UsageError: as for `capture`; or a hook that the skip connection bypasses, where dL/dx
                would miss a part.
        """
        seen: dict[str, Tensor] = {}

        def track(name: str) -> Hook:
            def hook_function(value: Tensor, **_: object) -> Tensor:
                seen[name] = tracked(value)
                return seen[name]

            return hook_function

        for hook in hooks:
            self._check_exists(hook)
            Site.of(hook).check_replaceable()
        out = self._output(tokens, [(name, track(name)) for name in hooks], {})
        self._check_fired(hooks, seen)
        loss = next_token_loss(out, tokens.to(self.device), real.to(self.device))
        found = site_gradients(loss, seen)
        flat = [
            {n: per_token(x.detach(), tokens, n) for n, x in part.items()} for part in (seen, found)
        ]
        return flat[0], flat[1]

    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        edits: Mapping[str, Edit] | None = None,
        hooks: Sequence[str] = (),
    ) -> ModelOutput:
        """One whole forward pass that applies the edits and reads each of `hooks`.

        If gradients are enabled, they flow from the logits and the activations back into the edits.
        The weights are frozen, so nothing before the first edit is in the graph.

        Raises:
            UsageError: an edited hook does not exist, or its value cannot be replaced whole; one of
                `hooks` does not exist, does not fire, or has no vector per token.
            RuntimeError: an edit was never applied, so the logits would be the plain model's.
        """
        edits = edits or {}
        for hook in edits:
            self._check_exists(hook)
            Site.of(hook).check_replaceable()
        for hook in hooks:
            self._check_exists(hook)
        applied: set[str] = set()
        seen: dict[str, Tensor] = {}

        # Readers run after all edits: a hook may have two names, and is read as edited.
        writers = [(name, replacer(name, edit, tokens, applied)) for name, edit in edits.items()]
        readers = [(name, reader(name, tokens, seen)) for name in dict.fromkeys(hooks)]
        out = self._output(tokens, writers + readers, seen)
        check_applied(edits, applied)
        self._check_fired(hooks, seen)
        return out

    @torch.no_grad()
    def logits(
        self, tokens: Int[Tensor, "batch pos"], edits: Mapping[str, Edit] | None = None
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """The logits of `run`, all positions at once, without gradients; raises as `run` does."""
        return self.run(tokens, edits=edits).logits

    @property
    def reads_on(self) -> bool:
        """See `continues`."""
        return self._continues()

    @torch.no_grad()
    def read_on(
        self,
        tokens: Int[Tensor, "batch new"],
        past: Past | None,
        edits: Mapping[str, Edit] | None = None,
    ) -> tuple[ModelOutput, Past]:
        """The output for new tokens after those of `past`, and the updated past.

        Edits see and return the new tokens' activations only. `past` must not be used again.

        Raises:
            UsageError: as for `run`.
            RuntimeError: as for `run`.
        """
        assert past is None or isinstance(past, KeyValuePast)
        edits, applied = edits or {}, set[str]()
        for hook in edits:
            self._check_exists(hook)
            Site.of(hook).check_replaceable()
        cache = (past or KeyValuePast()).cache
        writers = [(name, replacer(name, edit, tokens, applied)) for name, edit in edits.items()]
        # The model adds to the cache that it is given.
        out = self._output(tokens, writers, {}, past_key_values=cache)
        check_applied(edits, applied)
        return out, KeyValuePast(cache)

    @property
    def direct(self) -> DirectPaths:
        """The linear maps between sites and logits, derived from the running model."""
        return self._direct()

    @cached_property
    def _effects(self) -> LogitEffects:
        return LogitEffects(self)

    def why_no_logits(self, hook: str) -> str | None:
        """See `LogitEffects.why_not`."""
        return self._effects.why_not(hook)

    def residual_writes(
        self, hook: str, directions: Float[Tensor, "n d_in"]
    ) -> Float[Tensor, "n d_model"] | None:
        """See `LogitEffects.writes`."""
        return self._effects.writes(hook, directions)

    def logit_effects(
        self, hook: str, directions: Float[Tensor, "n d_in"]
    ) -> Float[Tensor, "n d_vocab"] | None:
        """See `LogitEffects.logits`."""
        return self._effects.logits(hook, directions)

    def _output(
        self,
        tokens: Tensor,
        hooks: Sequence[tuple[str, Hook]],
        seen: dict[str, Tensor],
        **more: Any,  # noqa: ANN401 - what TransformerLens takes
    ) -> ModelOutput:
        if any(name.startswith("unembed") for name, _ in hooks):
            return ModelOutput(self._forward(tokens, hooks, **more), seen)
        return self._head.run(lambda: self._forward(tokens, hooks, **more), seen)

    def _forward(
        self,
        tokens: Tensor,
        hooks: Iterable[tuple[str, Hook]],
        **more: Any,  # noqa: ANN401 - what TransformerLens takes
    ) -> Tensor:
        return self._bridge.run_with_hooks(
            tokens.to(self.device), fwd_hooks=list(hooks), return_type="logits", **more
        )

    def _check_exists(self, hook: str) -> None:
        if hook not in self._bridge.hook_dict:
            close = ", ".join(difflib.get_close_matches(hook, self.hooks(), 3, cutoff=0.0))
            raise UsageError(f"{self.info.name} has no hook {hook!r}; nearest are {close}.")

    def _check_fired(self, hooks: Sequence[str], seen: Mapping[str, Tensor]) -> None:
        if silent := ", ".join(sorted(set(hooks) - set(seen))):
            raise UsageError(f"{silent} of {self.info.name} does not fire in a forward pass.")

"""A language model run by transformers alone: faster than the bridge, with fewer sites.

Attention is sdpa, which the bridge cannot use because it exposes the attention pattern. A forward
pass has only the hooks that were asked for. Activations equal the bridge's up to rounding.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saelab.collector import paused
from saelab.config import UsageError
from saelab.lm.checkpoint import location, read_checkpoint
from saelab.lm.direct import DirectPaths
from saelab.lm.effects import LogitEffects
from saelab.lm.gradients import next_token_loss, site_gradients, tracked
from saelab.lm.head import OutputHead
from saelab.lm.hf_sites import ARCHITECTURES, Modules, alone, find
from saelab.lm.hooks import Hook, captured, check_applied, reader, replacer
from saelab.lm.load import (
    digested,
    dtype_name,
    identity,
    load_language_model,
    resolve_device,
)
from saelab.lm.protocol import Edit, LanguageModel, ModelInfo, ModelOutput
from saelab.lm.reading import Past, continues
from saelab.lm.replay import CudaRecording, Replays
from saelab.lm.tokenizer import HuggingFaceTokenizer
from saelab.sites import Site


class HuggingFaceModel:
    """A frozen causal model with its residual, attention and MLP sites, to read and to replace."""

    def __init__(self, model: Any, tokenizer: Any, info: ModelInfo) -> None:  # noqa: ANN401
        self._model = model.eval().requires_grad_(False)  # noqa: FBT003 - torch's signature
        self._modules = Modules(model)
        self._info = info
        self._head = OutputHead(model)
        self._tokenizer = HuggingFaceTokenizer(tokenizer)
        self._widths: dict[str, int] = {}
        self._direct = cache(lambda: DirectPaths(self._modules))
        self._continues = cache(lambda: continues(self))
        self._replays = Replays(CudaRecording)

    @property
    def info(self) -> ModelInfo:
        """Identity and shape of the model, equal to the bridge's."""
        return self._info

    @property
    def tokenizer(self) -> HuggingFaceTokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self._model.device

    def hooks(self) -> list[str]:
        """The names of all sites that this back end has."""
        return sorted(hook for hook in self._modules.points if Site.of(hook).layer is not None)

    def width(self, hook: str) -> int:
        """d_in of a site, heads flattened head-major; UsageError for an unknown site."""
        if hook not in self._widths:
            probe = torch.zeros(1, 2, dtype=torch.long)
            self._widths[hook] = self.capture(probe, [hook])[hook].shape[-1]
        return self._widths[hook]

    @torch.no_grad()
    def capture(
        self, tokens: Int[Tensor, "batch pos"], hooks: Sequence[str]
    ) -> dict[str, Float[Tensor, "batch pos d_in"]]:
        """Activations at `hooks` from one forward pass that stops after the last of them."""
        self._check_exist(hooks)

        def run(tokens: Int[Tensor, "batch pos"]) -> dict[str, Tensor]:
            def forward(functions: Sequence[tuple[str, Hook]]) -> None:
                with self._modules.hooked(functions):
                    self._model.base_model(tokens, **alone())

            return captured(hooks, tokens, forward)

        there = tokens.to(self.device)
        return self._replays.run(run, there, hooks) if there.is_cuda else run(there)

    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        edits: Mapping[str, Edit] | None = None,
        hooks: Sequence[str] = (),
    ) -> ModelOutput:
        """One whole forward pass that applies the edits and reads each of `hooks`.

        Raises:
            UsageError: this back end has no such site.
        """
        return self._run(tokens, edits or {}, hooks, **alone())

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
        """
        # Not above: it imports transformers.
        from saelab.lm.key_value_past import KeyValuePast

        assert past is None or isinstance(past, KeyValuePast)
        cache = (past or KeyValuePast()).cache
        # The model adds to the cache that it is given.
        out = self._run(tokens, edits or {}, (), past_key_values=cache, use_cache=True)
        return out, KeyValuePast(cache)

    def _run(
        self,
        tokens: Int[Tensor, "batch pos"],
        edits: Mapping[str, Edit],
        hooks: Sequence[str],
        **more: Any,  # noqa: ANN401 - what transformers takes
    ) -> ModelOutput:
        self._check_exist([*edits, *hooks])
        applied: set[str] = set()
        seen: dict[str, Tensor] = {}
        # Readers run after all edits: a hook may have two names, and is read as edited.
        both = [(name, replacer(name, edit, tokens, applied)) for name, edit in edits.items()]
        both += [(name, reader(name, tokens, seen)) for name in dict.fromkeys(hooks)]

        def forward() -> Tensor:
            with self._modules.hooked(both):
                return self._model(tokens.to(self.device), **more).logits

        out = self._head.run(forward, seen)
        check_applied(edits, applied)
        return out

    @property
    def direct(self) -> DirectPaths:
        """The linear maps between sites and logits, derived from the running model."""
        return self._direct()

    @cached_property
    def _effects(self) -> LogitEffects:
        return LogitEffects(self)

    def why_no_logits(self, hook: str) -> str | None:
        """See `LogitEffects.why_not`."""
        self._check_exist([hook])
        return self._effects.why_not(hook)

    def residual_writes(
        self, hook: str, directions: Float[Tensor, "n d_in"]
    ) -> Float[Tensor, "n d_model"] | None:
        """See `LogitEffects.writes`."""
        self._check_exist([hook])
        return self._effects.writes(hook, directions)

    def logit_effects(
        self, hook: str, directions: Float[Tensor, "n d_in"]
    ) -> Float[Tensor, "n d_vocab"] | None:
        """See `LogitEffects.logits`."""
        self._check_exist([hook])
        return self._effects.logits(hook, directions)

    @torch.enable_grad()
    def gradients(
        self,
        tokens: Int[Tensor, "batch pos"],
        hooks: Sequence[str],
        real: Bool[Tensor, "batch pos"],
    ) -> tuple[
        dict[str, Float[Tensor, "batch pos d_in"]], dict[str, Float[Tensor, "batch pos d_in"]]
    ]:
        """Activations at `hooks`, and dL/dx of the summed next-token loss there."""
        seen: dict[str, Tensor] = {}

        def track(name: str) -> Hook:
            def hook_function(value: Tensor) -> Tensor:
                seen[name] = tracked(value)
                return seen[name]

            return hook_function

        def forward() -> Tensor:
            with self._modules.hooked([(name, track(name)) for name in hooks]):
                return self._model(tokens.to(self.device), **alone()).logits

        self._check_exist(hooks)

        out = self._head.run(forward)
        loss = next_token_loss(out, tokens.to(self.device), real.to(self.device))
        gradients = site_gradients(loss, seen)
        return {name: value.detach() for name, value in seen.items()}, gradients

    def _check_exist(self, hooks: Iterable[str]) -> None:
        for hook in hooks:
            if hook not in self._modules.points:
                raise UsageError(
                    f"The hugging-face back end has no site {hook!r} in {self.info.name}; use "
                    "--backend transformer-lens."
                )


def serves(name: str, hooks: Sequence[str]) -> bool:
    """Whether this module knows the model's architecture and all of these hooks."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(location(name), trust_remote_code=False)
    except (OSError, ValueError):
        return False
    _, submodules = ARCHITECTURES.get(config.model_type, ("", {}))
    return all(find(hook, submodules, config.num_hidden_layers) for hook in hooks)


@paused()
def load_hugging_face_model(
    name: str, *, device: str | torch.device = "auto", dtype: torch.dtype = torch.float32
) -> HuggingFaceModel:
    """The model called `name`, as `load_language_model` finds it, without transformer_lens.

    Raises:
        UsageError: the architecture is unknown here; or as for `read_checkpoint`.
    """
    model, tokenizer = read_checkpoint(name, dtype=dtype, attention="sdpa")
    if model.config.model_type not in ARCHITECTURES:
        raise UsageError(
            f"The hugging-face back end knows {', '.join(ARCHITECTURES)}, not "
            f"{model.config.model_type}; use --backend transformer-lens."
        )
    with digested(model) as digest:
        nn.Module.to(model, resolve_device(device))
        info = _info(name, model, tokenizer, digest())
    return HuggingFaceModel(model, tokenizer, info)


@paused()
def load_source(
    name: str,
    hooks: Sequence[str],
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
) -> LanguageModel:
    """The model called `name`, by the faster back end that has these hooks.

    Raises:
        UsageError: as for `load_language_model`.
    """
    load = load_hugging_face_model if serves(name, hooks) else load_language_model
    return load(name, device=device, dtype=dtype)


def _info(name: str, model: Any, tokenizer: Any, digest: str) -> ModelInfo:  # noqa: ANN401
    config = model.config
    n_heads = config.num_attention_heads
    return ModelInfo(
        **identity(name, tokenizer, digest),
        architecture=type(model).__name__,
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=n_heads,
        d_head=getattr(config, "head_dim", None) or config.hidden_size // n_heads,
        d_vocab=config.vocab_size,
        n_ctx=config.max_position_embeddings,
        dtype=dtype_name(model.dtype),
    )

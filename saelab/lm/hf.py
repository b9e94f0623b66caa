"""A language model run by transformers alone: faster than the bridge, with fewer sites.

Attention is sdpa, which the bridge cannot use because it exposes the attention pattern. A forward
pass has only the hooks that were asked for. Activations equal the bridge's up to rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saelab.config import UsageError
from saelab.lm.checkpoint import location, read_checkpoint
from saelab.lm.gradients import next_token_loss, site_gradients, tracked
from saelab.lm.head import OutputHead
from saelab.lm.hooks import AllCapturedError
from saelab.lm.load import (
    dtype_name,
    load_language_model,
    resolve_device,
    tokenizer_digest,
    weights_digest,
)
from saelab.lm.protocol import ActivationSource, ModelInfo
from saelab.lm.tokenizer import HuggingFaceTokenizer
from saelab.sites import Site

Side = Literal["input", "output"]
Submodule = tuple[str, Side]
"""A module's path inside a block ("" is the block itself), and on which side of it the site is."""


def _submodules(attention: str, heads_out: str, norm: str, mlp_out: str) -> dict[str, Submodule]:
    return {
        "hook_resid_pre": ("", "input"),
        "hook_resid_post": ("", "output"),
        "attn.hook_z": (f"{attention}.{heads_out}", "input"),
        "attn.hook_out": (attention, "output"),
        "hook_attn_out": (attention, "output"),
        "ln2.hook_out": (norm, "output"),
        "mlp.hook_in": ("mlp", "input"),
        "hook_mlp_out": ("mlp", "output"),
        "mlp.hook_out": ("mlp", "output"),
        "mlp.hook_post": (f"mlp.{mlp_out}", "input"),
    }


_LLAMA = ("layers", _submodules("self_attn", "o_proj", "post_attention_layernorm", "down_proj"))
ARCHITECTURES: dict[str, tuple[str, dict[str, Submodule]]] = {
    "gpt2": ("h", _submodules("attn", "c_proj", "ln_2", "c_proj")),
    "gpt_neox": (
        "layers",
        _submodules("attention", "dense", "post_attention_layernorm", "dense_4h_to_h"),
    ),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
}
"""By transformers' `model_type`: the list of blocks inside the base model, and the sites' places.
Models with norms behind their attention and MLP (Gemma 2 and 3) are not among them: there
`hook_attn_out` is something else."""


class HuggingFaceModel:
    """A frozen causal model with its residual, attention and MLP sites, for harvesting."""

    def __init__(self, model: Any, tokenizer: Any, info: ModelInfo) -> None:  # noqa: ANN401
        self._model = model.eval().requires_grad_(False)  # noqa: FBT003 - torch's signature
        self._info = info
        self._head = OutputHead(model)
        self._tokenizer = HuggingFaceTokenizer(tokenizer)
        blocks, self._submodules = ARCHITECTURES[model.config.model_type]
        self._blocks: nn.ModuleList = getattr(model.base_model, blocks)
        self._widths: dict[str, int] = {}

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
        seen: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor) -> None:
            seen[name] = value
            if len(seen) == len(set(hooks)):
                raise AllCapturedError

        try:
            with self._hooked(hooks, keep):
                self._model.base_model(tokens.to(self.device), use_cache=False)
        except AllCapturedError:
            pass
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
        """Activations at `hooks`, and dL/dx of the summed next-token loss there."""
        seen: dict[str, Tensor] = {}

        def track(name: str, value: Tensor) -> Tensor:
            seen[name] = tracked(value)
            return seen[name]

        def forward() -> Tensor:
            with self._hooked(hooks, track):
                return self._model(tokens.to(self.device), use_cache=False).logits

        out = self._head.run(forward)
        loss = next_token_loss(out, tokens.to(self.device), real.to(self.device))
        gradients = site_gradients(loss, seen)
        return {name: value.detach() for name, value in seen.items()}, gradients

    @contextmanager
    def _hooked(
        self, hooks: Sequence[str], see: Callable[[str, Tensor], Tensor | None]
    ) -> Iterator[None]:
        """A context in which `see` reads every site's value and may replace it (None: keep)."""
        with ExitStack() as stack:
            for hook in hooks:
                module, side = self._submodule(hook)
                handle = _attach(module, side, lambda value, name=hook: see(name, value))
                stack.callback(handle.remove)
            yield

    def _submodule(self, hook: str) -> tuple[nn.Module, Side]:
        found = _find(hook, self._submodules, len(self._blocks))
        if found is None:
            raise UsageError(
                f"The hugging-face back end has no site {hook!r} in {self.info.name}; use "
                "--backend transformer-lens."
            )
        layer, (path, side) = found
        return self._blocks[layer].get_submodule(path), side


def _attach(
    module: nn.Module, side: Side, see: Callable[[Tensor], Tensor | None]
) -> torch.utils.hooks.RemovableHandle:
    """A hook that passes a module's first input, or its output's first tensor, through `see`."""

    def before(_: nn.Module, args: tuple[Any, ...]) -> Any:  # noqa: ANN401
        value = see(args[0])
        return None if value is None else (value, *args[1:])

    def after(_: nn.Module, __: Any, output: Any) -> Any:  # noqa: ANN401
        several = isinstance(output, tuple)
        value = see(output[0] if several else output)
        return value if value is None or not several else (value, *output[1:])

    if side == "input":
        return module.register_forward_pre_hook(before)
    return module.register_forward_hook(after)


def serves(name: str, hooks: Sequence[str]) -> bool:
    """Whether this module knows the model's architecture and all of these hooks."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(location(name), trust_remote_code=False)
    except (OSError, ValueError, UsageError):
        return False
    _, submodules = ARCHITECTURES.get(config.model_type, ("", {}))
    return all(_find(hook, submodules, config.num_hidden_layers) for hook in hooks)


def _find(
    hook: str, submodules: dict[str, Submodule], n_layers: int
) -> tuple[int, Submodule] | None:
    """The layer and the submodule of a hook; None for an unknown hook."""
    site = Site.find(hook)
    if site is None or site.layer is None or site.layer >= n_layers:
        return None
    return None if site.part not in submodules else (site.layer, submodules[site.part])


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
    nn.Module.to(model, resolve_device(device))
    return HuggingFaceModel(model, tokenizer, _info(name, model, tokenizer))


def load_source(
    name: str,
    hooks: Sequence[str],
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
) -> ActivationSource:
    """The model called `name`, by the faster back end that has these hooks.

    Raises:
        UsageError: as for `load_language_model`.
    """
    load = load_hugging_face_model if serves(name, hooks) else load_language_model
    return load(name, device=device, dtype=dtype)


def _info(name: str, model: Any, tokenizer: Any) -> ModelInfo:  # noqa: ANN401
    config = model.config
    n_heads = config.num_attention_heads
    return ModelInfo(
        name=str(Path(name).resolve()) if name != "tiny" and Path(name).is_dir() else name,
        architecture=type(model).__name__,
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=n_heads,
        d_head=getattr(config, "head_dim", None) or config.hidden_size // n_heads,
        d_vocab=config.vocab_size,
        n_ctx=config.max_position_embeddings,
        weights_digest=weights_digest(model),
        tokenizer_digest=tokenizer_digest(tokenizer),
        dtype=dtype_name(model.dtype),
        bos_token_id=tokenizer.bos_token_id,
        special_token_ids=tuple(sorted(set(tokenizer.all_special_ids))),
    )

"""Where TransformerLens' hooks are in the modules of transformers, for common architectures."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saelab.lm.hooks import Hook
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


def find(
    hook: str, submodules: dict[str, Submodule], n_layers: int
) -> tuple[int, Submodule] | None:
    """The layer and the submodule of a hook; None for an unknown hook."""
    site = Site.find(hook)
    if site is None or site.layer is None or site.layer >= n_layers:
        return None
    return None if site.part not in submodules else (site.layer, submodules[site.part])


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


def alone() -> dict[str, Any]:
    """What a pass is given that neither continues another nor is continued."""
    # Not above: it imports transformers.
    from saelab.lm.key_value_past import NothingKept

    return {"use_cache": False, "past_key_values": NothingKept()}


@final
class Modules:
    """A model of transformers by hook names; what `DirectPaths` probes."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - transformers has no common class
        self._model = model
        name, submodules = ARCHITECTURES[model.config.model_type]
        blocks = getattr(model.base_model, name)
        head = model.get_output_embeddings()
        self.n_layers = len(blocks)
        self.points: dict[str, tuple[nn.Module, Side]] = {
            f"blocks.{layer}.{part}": (block.get_submodule(path), side)
            for layer, block in enumerate(blocks)
            for part, (path, side) in submodules.items()
        }
        self.points["unembed.hook_in"] = head, "input"
        self.points["unembed.hook_out"] = head, "output"
        """The module of each hook, and on which side of it the site is."""

    @property
    def unembedding(self) -> Float[Tensor, "d_model d_vocab"]:
        """The unembedding."""
        return self._model.get_output_embeddings().weight.T

    def linear_at(self, hook: str) -> nn.Module | None:
        """The module that takes the value at `hook` to the residual stream."""
        module, side = self.points[hook]
        return module if side == "input" else None

    def run(
        self, tokens: Int[Tensor, "batch pos"], hooks: Sequence[tuple[str, Hook]]
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """The logits of a whole pass with these hooks."""
        with self.hooked(hooks):
            return self._model(tokens, **alone()).logits

    @contextmanager
    def hooked(self, hooks: Sequence[tuple[str, Hook]]) -> Iterator[None]:
        """A context in which each hook sees its site's value and may replace it (None: keep)."""
        with ExitStack() as stack:
            for name, hook in hooks:
                stack.callback(_attach(*self.points[name], hook).remove)
            yield

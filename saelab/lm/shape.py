"""A language model's shape, from its configuration alone: widths, weights, operations per token.

No weights are read: the architecture is built on torch's meta device, which holds no numbers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saelab.config import UsageError
from saelab.lm.checkpoint import read_model_config
from saelab.sites import Site

IN_BLOCK = re.compile(r"\.\d+\.")
"""Matches the name of a weight that belongs to a block."""
EVERY = "*"
ENDLESS = 2**20
"""The longest context of a model whose configuration names none, such as that of Mamba."""
NORMED = ("ln1.hook_out", "ln2.hook_out", "mlp.hook_in", "hook_embed", "hook_pos_embed")
MLP_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "intermediate_dim")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class ModelShape:
    """A causal language model's sizes.

    Attributes:
        mlp: width inside the MLP.
        block: weights of all blocks.
        used: of these, the weights that one token is multiplied with (fewer with experts).
        rest: weights outside of the blocks, such as embeddings.
        context: the longest context.
    """

    name: str
    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_vocab: int
    mlp: int
    block: int
    used: int
    rest: int
    context: int

    @property
    def weights(self) -> int:
        """All weights."""
        return self.block + self.rest

    def width(self, hook: str) -> int:
        """Width of a site, its heads flattened.

        Raises:
            UsageError: the model has no such site, or its width does not follow from the shape.
        """
        site = Site.of(hook)
        if site.layer is not None and site.layer >= self.n_layers:
            raise UsageError(
                f"{hook}: {self.name} has {self.n_layers} layers, numbered from 0 to "
                f"{self.n_layers - 1}."
            )
        if site.kind == "residual" or site.part in NORMED:
            return self.d_model
        if site.kind == "heads":
            return self.n_heads * self.d_head
        if site.kind == "mlp":
            return self.mlp
        raise UsageError(
            f"The width of {hook} does not follow from a config.json; plan with a site of the "
            "residual stream, attn.hook_z, mlp.hook_post, or an output of a block's parts."
        )

    def sites(self, names: Sequence[str]) -> tuple[str, ...]:
        """The hooks that these names mean: `blocks.*.X` is X of every layer.

        Raises:
            UsageError: as for `width`.
        """
        layers = range(self.n_layers)
        every = [
            [n.replace(EVERY, str(i), 1) for i in layers] if EVERY in n else [n] for n in names
        ]
        found = tuple(name for group in every for name in group)
        for name in found:
            self.width(name)
        return found

    def check_length(self, length: int) -> None:
        """Refuse contexts longer than the model's.

        Raises:
            UsageError: names both.
        """
        if length > self.context:
            raise UsageError(
                f"--context-length {length} is more than the {self.context} positions of "
                f"{self.name}; lower it."
            )

    def layers_to(self, hooks: Sequence[str]) -> int:
        """Blocks that a pass runs which stops after the last of these hooks."""
        found = [Site.of(hook) for hook in hooks]
        ends = [self.n_layers if s.layer is None and s.next_layer is None else 0 for s in found]
        return max([*ends, *(s.layer + 1 for s in found if s.layer is not None)])

    def operations(self, layers: int, length: int, *, logits: bool = False) -> float:
        """Floating-point operations per token of a pass: two a weight, and attention's products.

        Attention is counted without its causal half, as most implementations compute it.
        """
        attention = 4.0 * length * self.n_heads * self.d_head * layers
        blocks = 2.0 * self.used * layers / self.n_layers
        return blocks + attention + (2.0 * self.d_model * self.d_vocab if logits else 0.0)


def model_shape(name: str) -> ModelShape:
    """The shape of the model called `name`; nothing is downloaded.

    Args:
        name: `tiny`, a directory with a config.json, this file itself, or a name on the hub whose
            configuration is in the local cache.

    Raises:
        UsageError: there is no such configuration here, or it is no causal language model's.
    """
    path = Path(name)
    where = str(path.parent) if path.is_file() and path.name == "config.json" else name
    config = read_model_config(where, fetch=False).get_text_config()
    sizes, expert = _weights(config), _expert_share(config)
    block = sum(n for name, n in sizes.items() if IN_BLOCK.search(name))
    routed = sum(n for name, n in sizes.items() if IN_BLOCK.search(name) and ".experts." in name)
    heads, width = config.num_attention_heads, config.hidden_size
    return ModelShape(
        name=name,
        n_layers=config.num_hidden_layers,
        d_model=width,
        n_heads=heads,
        d_head=getattr(config, "head_dim", None) or width // heads,
        d_vocab=config.vocab_size,
        mlp=next(filter(None, (getattr(config, key, None) for key in MLP_WIDTHS)), 4 * width),
        block=block,
        used=block - round(routed * (1 - expert)),
        rest=sum(sizes.values()) - block,
        context=getattr(config, "max_position_embeddings", None) or ENDLESS,
    )


def _weights(config: Any) -> dict[str, int]:  # noqa: ANN401 - one class per architecture
    """The number of weights of each parameter, by name."""
    import transformers

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return {name: weight.numel() for name, weight in model.named_parameters()}


def _expert_share(config: Any) -> float:  # noqa: ANN401 - one class per architecture
    """The share of the experts that a token is sent to."""
    n = next(filter(None, (getattr(config, key, None) for key in EXPERTS)), None)
    return getattr(config, "num_experts_per_tok", n) / n if n else 1.0

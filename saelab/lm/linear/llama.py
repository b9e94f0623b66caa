"""Llama's layout and its many relatives: separate q, k and v; mostly rotary, RMS and grouped.

`LLAMA_LIKE` has a line for how each family differs. How a checkpoint of a family differs
(multipliers, soft caps, windows, blocks without positions, norms of queries and keys) follows from
its configuration and parameters.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from saelab.config import UsageError
from saelab.lm.linear.parameters import Parameters
from saelab.lm.linear.paths import LayerWeights, ModelWeights, Norm, Rotary

_ATTENTION = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Layout:
    """How a family differs from Llama, with the names of modules in a block.

    Attributes:
        ln1, ln2: norms before attention and the MLP; None if there is none, or if attention's norm
            also serves a parallel MLP.
        attn_post, mlp_post: norms after them, before the residual stream.
        final: the final norm.
        norm: kind of norm: `rms`, `layer` (centred), or `plain layer` (without parameters).
        offset: whether gains are 1 + weight.
        out: W_O.
        parallel: whether blocks are parallel, unless the configuration says.
        interleaved: whether rotary dimensions are paired (0, 1), (2, 3), ...
    """

    ln1: str | None = "input_layernorm"
    ln2: str | None = "post_attention_layernorm"
    attn_post: str | None = None
    mlp_post: str | None = None
    final: str = "norm"
    norm: Literal["rms", "layer", "plain layer"] = "rms"
    offset: bool = False
    out: str = "o_proj"
    parallel: bool = False
    interleaved: bool = False


_FOUR_NORMS = Layout(
    ln2="pre_feedforward_layernorm",
    attn_post="post_attention_layernorm",
    mlp_post="post_feedforward_layernorm",
    offset=True,
)
_POST_NORMS = Layout(
    ln1=None, ln2=None, attn_post=_FOUR_NORMS.attn_post, mlp_post=_FOUR_NORMS.mlp_post
)
LLAMA_LIKE: dict[str, Layout] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "phi3", "granite", "smollm3"), Layout()),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "olmoe"), Layout()),
    "gemma": Layout(offset=True),
    **dict.fromkeys(("gemma2", "gemma3_text", "gemma3"), _FOUR_NORMS),
    "olmo": Layout(norm="plain layer"),
    **dict.fromkeys(("olmo2", "olmo3"), _POST_NORMS),
    **dict.fromkeys(("stablelm", "starcoder2"), Layout(norm="layer")),
    "nemotron": Layout(norm="layer", offset=True),
    "phi": Layout(ln2=None, final="final_layernorm", norm="layer", out="dense", parallel=True),
    "cohere": Layout(ln2=None, norm="layer", parallel=True, interleaved=True),
    "glm4": Layout(
        attn_post="post_self_attn_layernorm", mlp_post="post_mlp_layernorm", interleaved=True
    ),
}
"""The layout of each `model_type` of transformers."""


def llama_like(parameters: Parameters, config: Any) -> ModelWeights:  # noqa: ANN401
    """The weights of a model whose type is in `LLAMA_LIKE`.

    Raises:
        UsageError: the model clips queries, keys and values, or has an unknown kind of attention.
    """
    layout = LLAMA_LIKE[config.model_type]
    # A model that also reads images has its language model one level down.
    base = "model" if "model.embed_tokens.weight" in parameters else "model.language_model"
    config = config.get_text_config()
    if getattr(config, "clip_qkv", None) is not None:
        raise UsageError(
            f"This {config.model_type} clips its queries, keys and values at {config.clip_qkv}, "
            "which is not linear; attribution needs a model with clip_qkv null."
        )
    reader = _Reader(parameters, config, layout, base)
    embeddings = f"{base}.embed_tokens.weight"
    head = embeddings if config.tie_word_embeddings else "lm_head.weight"
    return ModelWeights(
        W_E=parameters.own_dtype(embeddings),
        W_pos=None,
        layers=tuple(reader.layer(number) for number in range(config.num_hidden_layers)),
        ln_final=reader.norm(f"{base}.{layout.final}"),
        W_U=parameters.own_dtype(head).T,
        b_U=parameters.or_zeros("lm_head.bias", config.vocab_size),
        embed_scale=reader.embed_scale(embeddings),
        logit_scale=getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0),
        soft_cap=getattr(config, "final_logit_softcapping", None),
    )


class _Reader:
    """Reads blocks of one checkpoint."""

    def __init__(self, parameters: Parameters, config: Any, layout: Layout, base: str) -> None:  # noqa: ANN401
        self._parameters, self._config, self._layout, self._base = parameters, config, layout, base
        names = ("rms_norm_eps", "layer_norm_eps", "norm_epsilon", "norm_eps")
        found = [getattr(config, name) for name in names if hasattr(config, name)]
        self._epsilon = 1e-5 if layout.norm == "plain layer" else found[0]
        self._heads = config.num_attention_heads
        self._kv = getattr(config, "num_key_value_heads", None) or self._heads

    def embed_scale(self, embeddings: str) -> float:
        """The factor of embeddings, rounded as the model rounds it."""
        scale = embeddings.removesuffix("weight") + "embed_scale"
        if scale in self._parameters:
            own = self._parameters.own_dtype(embeddings).dtype
            return float(self._parameters.own_dtype(scale).to(own))
        return float(getattr(self._config, "embedding_multiplier", 1.0))

    def norm(self, name: str | None) -> Norm:
        """A norm of the residual stream; without effect if the family has no norm there."""
        width = self._config.hidden_size
        one = self._parameters.full(1.0, width)
        if name is None:
            return Norm.gain_only(one)
        if self._layout.norm == "plain layer":
            return Norm(one, torch.zeros_like(one), self._epsilon, centred=True)
        gain, bias = self._parameters(f"{name}.weight"), f"{name}.bias"
        return Norm(
            gain + 1 if self._layout.offset else gain,
            self._parameters.or_zeros(bias, width),
            self._epsilon,
            centred=self._layout.norm == "layer",
        )

    def layer(self, number: int) -> LayerWeights:
        """One block."""
        config, layout, at = self._config, self._layout, f"{self._base}.layers.{number}"
        (W_Q, b_Q), (W_K, b_K), (W_V, b_V) = self._queries_keys_values(f"{at}.self_attn")
        W_O = self._parameters(f"{at}.self_attn.{layout.out}.weight")
        d_head, rotary = W_Q.shape[-1], self._rotary(number)
        q_norm, k_norm = (self._head_norm(f"{at}.self_attn", name, d_head) for name in ("q", "k"))
        if layout.interleaved and rotary is not None:
            order = _halves(2 * len(rotary.frequencies), d_head)
            W_Q, b_Q, W_K, b_K = (x[..., order] for x in (W_Q, b_Q, W_K, b_K))
            q_norm, k_norm = (
                Norm(n.gain[:, order], n.bias[:, order], n.epsilon, n.centred, n.joint)
                for n in (q_norm, k_norm)
            )
        names = (layout.ln1, layout.ln2, layout.attn_post, layout.mlp_post)
        ln1, ln2, attn_post, mlp_post = (name and f"{at}.{name}" for name in names)
        parallel = getattr(config, "use_parallel_residual", layout.parallel)
        shared = parallel and (ln2 is None or f"{ln2}.weight" not in self._parameters)
        return LayerWeights(
            *(W_Q, W_K, W_V, rearrange(W_O, "m (h e) -> h e m", h=self._heads)),
            *(b_Q, b_K, b_V),
            self._parameters.or_zeros(f"{at}.self_attn.{layout.out}.bias", len(W_O)),
            ln1=self.norm(ln1),
            ln2=self.norm(ln1 if shared else ln2),
            attn_post=self._post(attn_post),
            mlp_post=self._post(mlp_post),
            q_norm=q_norm,
            k_norm=k_norm,
            rotary=rotary,
            scaling=self._scaling(d_head),
            parallel=parallel,
            soft_cap=getattr(config, "attn_logit_softcapping", None),
            window=self._window(number),
        )

    def _post(self, name: str | None) -> Norm:
        if name is not None:
            return self.norm(name)
        by = getattr(self._config, "residual_multiplier", 1.0)
        return Norm.gain_only(self._parameters.full(by, self._config.hidden_size))

    def _queries_keys_values(self, at: str) -> list[tuple[Tensor, Tensor]]:
        groups = self._heads // self._kv
        if f"{at}.qkv_proj.weight" not in self._parameters:
            sizes = (("q", self._heads, 1), ("k", self._kv, groups), ("v", self._kv, groups))
            return [self._parameters.projection(f"{at}.{n}_proj", h, g) for n, h, g in sizes]
        W, b = self._parameters.projection(f"{at}.qkv_proj", self._heads + 2 * self._kv)
        sizes = (self._heads, self._kv, self._kv)
        parts = zip(W.split(sizes), b.split(sizes), (1, groups, groups), strict=True)
        return [(w.repeat_interleave(n, 0), c.repeat_interleave(n, 0)) for w, c, n in parts]

    def _head_norm(self, at: str, name: str, d_head: int) -> Norm:
        """The norm of queries or keys, if any: one for all heads, one per head, or joint."""
        heads = self._heads if name == "q" else self._kv
        own = [f"{at}.{name}_layernorm.norms.{head}.weight" for head in range(heads)]
        names = (f"{at}.{name}_norm", f"{at}.{name}_layernorm")
        found = [n for n in names if f"{n}.weight" in self._parameters]
        if own[0] in self._parameters:
            gain = torch.stack([self._parameters(weight) for weight in own])
        elif found:
            gain = self._parameters(f"{found[0]}.weight")
        else:
            return Norm.gain_only(self._parameters.full(1.0, self._heads, d_head))
        size = gain.numel()
        bias = self._parameters.or_zeros(f"{found[0]}.bias" if found else "", size)

        def by_head(x: Tensor) -> Float[Tensor, "head d_head"]:
            x = x.reshape(-1, d_head)
            return x.repeat_interleave(self._heads // len(x), dim=0)

        joint = gain.ndim == 1 and size > d_head
        gain = gain + 1 if self._layout.offset else gain
        centred = self._layout.norm == "layer"
        return Norm(by_head(gain), by_head(bias), self._epsilon, centred, joint)

    def _rotary(self, number: int) -> Rotary | None:
        config, kinds = self._config, getattr(self._config, "layer_types", None)
        used = getattr(config, "no_rope_layers", None)
        if used and not used[number]:
            return None
        settings = config.rope_parameters or {}
        kind = kinds[number] if kinds and kinds[number] in settings else None
        return self._parameters.rotary(f"{self._base}.rotary_emb", config, kind)

    def _scaling(self, d_head: int) -> float:
        config = self._config
        if (by := getattr(config, "attention_multiplier", None)) is not None:
            return by
        return (getattr(config, "query_pre_attn_scalar", None) or d_head) ** -0.5

    def _window(self, number: int) -> int | None:
        config, kinds = self._config, getattr(self._config, "layer_types", None)
        if kinds and kinds[number] not in _ATTENTION:
            raise UsageError(
                f"Block {number} of this {config.model_type} has {kinds[number]}; attribution "
                f"knows {' and '.join(_ATTENTION)}."
            )
        slides = not kinds or kinds[number] == "sliding_attention"
        return getattr(config, "sliding_window", None) if slides else None


def _halves(rotated: int, d_head: int) -> list[int]:
    """The order that turns neighbouring pairs of dimensions into pairs of halves."""
    return [*range(0, rotated, 2), *range(1, rotated, 2), *range(rotated, d_head)]

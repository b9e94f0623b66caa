"""The weights of a loaded model as attribution needs them: per head, in float64 where asked.

Known are GPT-2 (`gpt2`) and the Llama layout (`llama`, `mistral`, `qwen2`: RMS norm, rotary
positions, grouped keys and values). Both put norms before attention and MLP and add what these
return to the residual stream as it is, so with attention patterns and norm scales held fixed, all
but the MLPs is linear. Models without that form are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from saelab.config import UsageError
from saelab.lm.protocol import ActivationSource

LINEAR_ROPE = ("default", "linear", "llama3")
"""Rotary kinds whose angles are position times a fixed frequency, unscaled."""


@dataclass(frozen=True)
class Norm:
    """A layer norm, or an RMS norm where it is not `centred`."""

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    epsilon: float
    centred: bool

    def scale(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows 1"]:
        """What the norm divides by."""
        x = self._centre(x)
        return (x.square().mean(-1, keepdim=True) + self.epsilon).sqrt()

    def linear(
        self, x: Float[Tensor, "*rows d_model"], scale: Float[Tensor, "*#rows 1"]
    ) -> Float[Tensor, "*rows d_model"]:
        """The norm at a fixed scale, without its bias: linear in `x`."""
        return self._centre(x) / scale * self.gain

    def transpose(
        self, g: Float[Tensor, "*rows d_model"], scale: Float[Tensor, "*#rows 1"]
    ) -> Float[Tensor, "*rows d_model"]:
        """The transpose of `linear`: gradients at the norm's output to gradients at its input."""
        return self._centre(g * self.gain) / scale

    def _centre(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        return x - x.mean(-1, keepdim=True) if self.centred else x


@dataclass(frozen=True)
class LayerWeights:
    """One block; keys and values are repeated so that every query head has its own.

    Attributes:
        rotary: angle per position of each pair of dimensions of q and k; None: not rotary.
    """

    W_Q: Float[Tensor, "head d_model d_head"]
    W_K: Float[Tensor, "head d_model d_head"]
    W_V: Float[Tensor, "head d_model d_head"]
    W_O: Float[Tensor, "head d_head d_model"]
    b_Q: Float[Tensor, "head d_head"]  # noqa: N815
    b_K: Float[Tensor, "head d_head"]  # noqa: N815
    b_V: Float[Tensor, "head d_head"]  # noqa: N815
    b_O: Float[Tensor, " d_model"]  # noqa: N815
    ln1: Norm
    ln2: Norm
    rotary: Float[Tensor, " pair"] | None

    def rotate(
        self, x: Float[Tensor, "*batch pos head d_head"], positions: Int[Tensor, " pos"]
    ) -> Float[Tensor, "*batch pos head d_head"]:
        """Queries or keys turned by their positions; as they are where the model is not rotary."""
        if self.rotary is None:
            return x
        # Angles are made in float32, as transformers makes them.
        angles = positions[:, None].float() * self.rotary.float()
        cos, sin = (f(angles).to(x.dtype)[:, None].repeat(1, 1, 2) for f in (torch.cos, torch.sin))
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin


@dataclass(frozen=True)
class ModelWeights:
    """What lies on the linear paths of a model.

    Attributes:
        W_pos: None for rotary models.
        W_U: in the model's own dtype, since it may be large; `unembedding` converts columns.
    """

    W_E: Float[Tensor, "d_vocab d_model"]
    W_pos: Float[Tensor, "n_ctx d_model"] | None
    layers: tuple[LayerWeights, ...]
    ln_final: Norm
    W_U: Float[Tensor, "d_model d_vocab"]
    b_U: Float[Tensor, " d_vocab"]  # noqa: N815

    def unembedding(self, tokens: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """The columns of W_U for these tokens, in the number type of the layers."""
        return self.W_U[:, tokens].T.to(self.ln_final.gain.dtype)


def model_weights(
    lm: ActivationSource, dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> ModelWeights:
    """The weights of `lm`, of either back end, copied to `dtype`.

    Raises:
        UsageError: the architecture is not one that is known to be linear between its MLPs.
    """
    module = _module(lm)
    config = module.config
    state = _State(module, dtype, device or lm.device)
    if config.model_type == "gpt2":
        _refuse_scaled_gpt2(config, lm)
        return _gpt2(state, config)
    if config.model_type in ("llama", "mistral", "qwen2"):
        _refuse_odd_rope(config, lm)
        return _llama(state, config)
    raise UsageError(
        f"{lm.info.name} is of type {config.model_type}, which cannot be linearised here; "
        "attribution knows gpt2, llama, mistral and qwen2."
    )


class _State:
    """Parameters and buffers by their names in transformers, whichever back end holds them."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        # TransformerLens wraps each module in one of its own.
        found = [*module.state_dict().items(), *module.named_buffers()]
        self._values: Mapping[str, Tensor] = {
            name.replace("_original_component.", ""): value.detach() for name, value in found
        }
        self._dtype, self._device = dtype, device

    def __call__(self, name: str) -> Tensor:
        return self._values[name].to(self._device, self._dtype)

    def own_dtype(self, name: str) -> Tensor:
        return self._values[name].to(self._device)

    def or_zeros(self, name: str, size: int) -> Tensor:
        value = self._values.get(name)
        if value is None:
            return torch.zeros(size, dtype=self._dtype, device=self._device)
        return value.to(self._device, self._dtype)


def _gpt2(state: _State, config: Any) -> ModelWeights:  # noqa: ANN401
    def norm(name: str) -> Norm:
        name = f"transformer.{name}"
        return Norm(
            state(f"{name}.weight"), state(f"{name}.bias"), config.layer_norm_epsilon, centred=True
        )

    def layer(number: int) -> LayerWeights:
        heads = config.n_head
        at = f"transformer.h.{number}.attn"
        W = rearrange(state(f"{at}.c_attn.weight"), "m (qkv h e) -> qkv h m e", qkv=3, h=heads)
        b = rearrange(state(f"{at}.c_attn.bias"), "(qkv h e) -> qkv h e", qkv=3, h=heads)
        W_O = rearrange(state(f"{at}.c_proj.weight"), "(h e) m -> h e m", h=heads)
        b_O = state(f"{at}.c_proj.bias")
        norms = norm(f"h.{number}.ln_1"), norm(f"h.{number}.ln_2")
        (W_Q, W_K, W_V), (b_Q, b_K, b_V) = W, b
        return LayerWeights(W_Q, W_K, W_V, W_O, b_Q, b_K, b_V, b_O, *norms, rotary=None)

    return ModelWeights(
        W_E=state("transformer.wte.weight"),
        W_pos=state("transformer.wpe.weight"),
        layers=tuple(layer(number) for number in range(config.n_layer)),
        ln_final=norm("ln_f"),
        W_U=state.own_dtype("lm_head.weight").T,
        b_U=state.or_zeros("lm_head.bias", config.vocab_size),
    )


def _llama(state: _State, config: Any) -> ModelWeights:  # noqa: ANN401
    n_heads, n_kv = config.num_attention_heads, config.num_key_value_heads

    def norm(name: str) -> Norm:
        gain = state(f"model.{name}.weight")
        return Norm(gain, torch.zeros_like(gain), config.rms_norm_eps, centred=False)

    def projection(name: str, heads: int) -> tuple[Tensor, Tensor]:
        W = rearrange(state(f"{name}.weight"), "(h e) m -> h m e", h=heads)
        bias = state.or_zeros(f"{name}.bias", W.shape[0] * W.shape[2])
        b = rearrange(bias, "(h e) -> h e", h=heads)
        times = n_heads // heads
        return W.repeat_interleave(times, dim=0), b.repeat_interleave(times, dim=0)

    def layer(number: int) -> LayerWeights:
        at = f"layers.{number}"
        attn = f"model.{at}.self_attn"
        Q, K, V = (
            projection(f"{attn}.{part}_proj", heads)
            for part, heads in (("q", n_heads), ("k", n_kv), ("v", n_kv))
        )
        W_O = rearrange(state(f"{attn}.o_proj.weight"), "m (h e) -> h e m", h=n_heads)
        b_O = state.or_zeros(f"{attn}.o_proj.bias", config.hidden_size)
        norms = norm(f"{at}.input_layernorm"), norm(f"{at}.post_attention_layernorm")
        rotary = state("model.rotary_emb.inv_freq")
        return LayerWeights(Q[0], K[0], V[0], W_O, Q[1], K[1], V[1], b_O, *norms, rotary)

    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return ModelWeights(
        W_E=state("model.embed_tokens.weight"),
        W_pos=None,
        layers=tuple(layer(number) for number in range(config.num_hidden_layers)),
        ln_final=norm("norm"),
        W_U=state.own_dtype(head).T,
        b_U=state.or_zeros("lm_head.bias", config.vocab_size),
    )


def _module(lm: ActivationSource) -> Any:  # noqa: ANN401 - transformers has no common class
    from saelab.lm.hf import HuggingFaceModel

    if isinstance(lm, HuggingFaceModel):
        return lm._model
    # A bridge has imported transformer_lens already, so this costs nothing then.
    from saelab.lm.bridge import BridgeLanguageModel

    if isinstance(lm, BridgeLanguageModel):
        return lm._bridge.original_model
    raise UsageError(f"The weights of a {type(lm).__name__} cannot be read for attribution.")


def _refuse_scaled_gpt2(config: Any, lm: ActivationSource) -> None:  # noqa: ANN401
    if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
        raise UsageError(
            f"{lm.info.name} scales its attention scores in its own way; attribution knows "
            "q.k / sqrt(d_head) only."
        )


def _refuse_odd_rope(config: Any, lm: ActivationSource) -> None:  # noqa: ANN401
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if kind not in LINEAR_ROPE:
        raise UsageError(
            f"{lm.info.name} has rotary positions of type {kind!r}; attribution knows "
            f"{', '.join(LINEAR_ROPE)}."
        )

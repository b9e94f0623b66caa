"""GPT-2's layout: layer norms, learned positions, queries, keys and values in one matrix."""

from typing import Any

from einops import rearrange

from saelab.lm.linear.parameters import Parameters
from saelab.lm.linear.paths import LayerWeights, ModelWeights, Norm


def gpt2(parameters: Parameters, config: Any) -> ModelWeights:  # noqa: ANN401
    """The weights of a `gpt2`."""
    epsilon = config.layer_norm_epsilon
    return ModelWeights(
        W_E=parameters.own_dtype("transformer.wte.weight"),
        W_pos=parameters("transformer.wpe.weight"),
        layers=tuple(_layer(parameters, config, number) for number in range(config.n_layer)),
        ln_final=parameters.layer_norm("transformer.ln_f", epsilon),
        W_U=parameters.own_dtype("lm_head.weight").T,
        b_U=parameters.or_zeros("lm_head.bias", config.vocab_size),
    )


def _layer(parameters: Parameters, config: Any, number: int) -> LayerWeights:  # noqa: ANN401
    heads, epsilon = config.n_head, config.layer_norm_epsilon
    at = f"transformer.h.{number}"
    W_Q, W_K, W_V = rearrange(
        parameters(f"{at}.attn.c_attn.weight"), "m (qkv h e) -> qkv h m e", qkv=3, h=heads
    )
    b_Q, b_K, b_V = rearrange(
        parameters(f"{at}.attn.c_attn.bias"), "(qkv h e) -> qkv h e", qkv=3, h=heads
    )
    d_head = b_Q.shape[-1]
    none = Norm.gain_only(parameters.full(1.0, heads, d_head))
    nothing = Norm.gain_only(parameters.full(1.0, heads * d_head))
    # Some GPT-2s divide attention scores by the layer's number, or do not scale them.
    scaling = d_head**-0.5 if config.scale_attn_weights else 1.0
    scaling /= number + 1 if config.scale_attn_by_inverse_layer_idx else 1
    return LayerWeights(
        *(W_Q, W_K, W_V),
        rearrange(parameters(f"{at}.attn.c_proj.weight"), "(h e) m -> h e m", h=heads),
        *(b_Q, b_K, b_V),
        parameters(f"{at}.attn.c_proj.bias"),
        ln1=parameters.layer_norm(f"{at}.ln_1", epsilon),
        ln2=parameters.layer_norm(f"{at}.ln_2", epsilon),
        attn_post=nothing,
        mlp_post=nothing,
        q_norm=none,
        k_norm=none,
        rotary=None,
        scaling=scaling,
    )

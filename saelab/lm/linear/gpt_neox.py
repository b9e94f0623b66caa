"""GPT-NeoX's layout (Pythia): parallel or not, partly rotary, q, k and v of each head together."""

from typing import Any

from einops import rearrange

from saelab.lm.linear.parameters import Parameters
from saelab.lm.linear.paths import LayerWeights, ModelWeights, Norm


def gpt_neox(parameters: Parameters, config: Any) -> ModelWeights:  # noqa: ANN401
    """The weights of a `gpt_neox`."""
    layers = range(config.num_hidden_layers)
    return ModelWeights(
        W_E=parameters.own_dtype("gpt_neox.embed_in.weight"),
        W_pos=None,
        layers=tuple(_layer(parameters, config, number) for number in layers),
        ln_final=parameters.layer_norm("gpt_neox.final_layer_norm", config.layer_norm_eps),
        W_U=parameters.own_dtype("lm_head.weight").T,
        b_U=parameters.or_zeros("lm_head.bias", config.vocab_size),
    )


def _layer(parameters: Parameters, config: Any, number: int) -> LayerWeights:  # noqa: ANN401
    heads, width = config.num_attention_heads, config.hidden_size
    at = f"gpt_neox.layers.{number}"
    packed = parameters(f"{at}.attention.query_key_value.weight")
    bias = parameters.or_zeros(f"{at}.attention.query_key_value.bias", len(packed))
    W_Q, W_K, W_V = rearrange(packed, "(h qkv e) m -> qkv h m e", qkv=3, h=heads)
    b_Q, b_K, b_V = rearrange(bias, "(h qkv e) -> qkv h e", qkv=3, h=heads)
    none = Norm.gain_only(parameters.full(1.0, heads, width // heads))
    nothing = Norm.gain_only(parameters.full(1.0, width))
    return LayerWeights(
        *(W_Q, W_K, W_V),
        rearrange(parameters(f"{at}.attention.dense.weight"), "m (h e) -> h e m", h=heads),
        *(b_Q, b_K, b_V),
        parameters.or_zeros(f"{at}.attention.dense.bias", width),
        ln1=parameters.layer_norm(f"{at}.input_layernorm", config.layer_norm_eps),
        ln2=parameters.layer_norm(f"{at}.post_attention_layernorm", config.layer_norm_eps),
        attn_post=nothing,
        mlp_post=nothing,
        q_norm=none,
        k_norm=none,
        rotary=parameters.rotary("gpt_neox.rotary_emb", config, None),
        scaling=(width // heads) ** -0.5,
        parallel=config.use_parallel_residual,
    )

"""A full record of one forward pass: every quantity between the MLPs, from the weights.

The MLPs' outputs are read from the running model. Everything else is computed again in the dtype of
the weights (float64 by default), so sums of its parts are exact up to that dtype's rounding. The
results are compared with the model's own values: a model that computes anything else is refused.
"""

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from saelab.config import UsageError
from saelab.lm.linear.paths import LayerWeights, ModelWeights
from saelab.lm.protocol import ActivationSource, LanguageModel

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
"""Largest deviation from the model's own values, relative to the largest of them, by the model's
dtype; RMS norms and rotary angles are float32 even in a float64 model."""
COARSE = 0.1
"""The same for half precision."""


@dataclass(frozen=True)
class LayerRecord:
    """One block of a forward pass; q and k are after their norm and rotation.

    Attributes:
        q_scale, k_scale: scales that norms of queries and keys divide by; 1 without norms.
        pattern: attention after the softmax, `[batch head dest src]`.
        attn_post_scale, mlp_post_scale: scales that norms after attention and MLP divide by; 1
            without norms.
        attn_raw: attention's output, `z W_O + b_O`.
        attn_out: what attention adds to the stream, after its post-norm or multiplier.
        resid_mid: the stream after attention's addition, whether or not the MLP reads it.
        mlp_in: the MLP's input: the second norm's output, bias included.
        mlp_raw: the MLP's output.
        mlp_out: what the MLP adds to the stream, after its post-norm or multiplier.
    """

    resid_pre: Float[Tensor, "batch pos d_model"]
    ln1_scale: Float[Tensor, "batch pos 1"]
    q_scale: Float[Tensor, "batch pos head 1"]
    k_scale: Float[Tensor, "batch pos head 1"]
    q: Float[Tensor, "batch pos head d_head"]
    k: Float[Tensor, "batch pos head d_head"]
    v: Float[Tensor, "batch pos head d_head"]
    pattern: Float[Tensor, "batch head pos pos"]
    z: Float[Tensor, "batch pos head d_head"]
    attn_post_scale: Float[Tensor, "batch pos 1"]
    attn_raw: Float[Tensor, "batch pos d_model"]
    attn_out: Float[Tensor, "batch pos d_model"]
    resid_mid: Float[Tensor, "batch pos d_model"]
    ln2_scale: Float[Tensor, "batch pos 1"]
    mlp_in: Float[Tensor, "batch pos d_model"]
    mlp_raw: Float[Tensor, "batch pos d_model"]
    mlp_post_scale: Float[Tensor, "batch pos 1"]
    mlp_out: Float[Tensor, "batch pos d_model"]

    @property
    def z_cat(self) -> Float[Tensor, "batch pos d_in"]:
        """The value at hook_z that an SAE reads: heads flattened head-major."""
        return self.z.flatten(2)


@dataclass(frozen=True)
class ForwardRecord:
    """One forward pass of a model over `tokens`.

    Attributes:
        position: zeros for rotary models.
        resid_final: the residual stream before the final norm.
    """

    tokens: Int[Tensor, "batch pos"]
    embed: Float[Tensor, "batch pos d_model"]
    position: Float[Tensor, "batch pos d_model"]
    layers: tuple[LayerRecord, ...]
    resid_final: Float[Tensor, "batch pos d_model"]
    ln_final_scale: Float[Tensor, "batch pos 1"]

    def final(self, weights: ModelWeights) -> Float[Tensor, "batch pos d_model"]:
        """The final norm's output."""
        norm = weights.ln_final
        return norm.linear(self.resid_final, self.ln_final_scale) + norm.bias

    def logits(
        self, weights: ModelWeights, token_ids: Int[Tensor, " n"]
    ) -> Float[Tensor, "batch pos n"]:
        """The logits of a few tokens."""
        return weights.logits(self.final(weights), token_ids)


def record_forward(
    lm: ActivationSource, weights: ModelWeights, tokens: Int[Tensor, "batch pos"]
) -> ForwardRecord:
    """A full record of `lm` on `tokens`, at most its context long.

    Raises:
        UsageError: there are too many tokens, or the model's values do not follow from its weights
            and configuration.
    """
    if tokens.shape[1] > lm.info.n_ctx:
        raise UsageError(
            f"The prompt has {tokens.shape[1]} tokens, more than the {lm.info.n_ctx} that "
            f"{lm.info.name} reads; shorten it."
        )
    last = len(weights.layers) - 1
    mlps = [f"blocks.{layer}.mlp.hook_out" for layer in range(last + 1)]
    heads = [f"blocks.{layer}.attn.hook_z" for layer in range(last + 1)]
    end = f"blocks.{last}.hook_resid_post"
    seen = lm.capture(tokens, [*mlps, *heads, end])
    dtype = weights.ln_final.gain.dtype
    tokens = tokens.to(weights.W_E.device)
    embed = weights.embedding(tokens)
    position = torch.zeros_like(embed)
    if weights.W_pos is not None:
        position = position + weights.W_pos[: tokens.shape[1]]
    resid, layers = embed + position, []
    for layer, mlp, head in zip(weights.layers, mlps, heads, strict=True):
        done = layer_record(layer, resid, seen[mlp].to(resid.device, dtype))
        _check(lm, head, done.z_cat, seen[head])
        resid = done.resid_mid + done.mlp_out
        layers.append(done)
    _check(lm, end, resid, seen[end])
    scale = weights.ln_final.scale(resid)
    return ForwardRecord(tokens, embed, position, tuple(layers), resid, scale)


def check_whole(lm: LanguageModel, weights: ModelWeights, record: ForwardRecord) -> None:
    """Compare the MLPs' inputs and the last position's logits with the running model.

    Sums of a record's parts do not need them, but transcoders read MLP inputs, and targets are
    logits.

    Raises:
        UsageError: the model's values differ.
    """
    hooks = [f"blocks.{number}.mlp.hook_in" for number in range(len(record.layers))]
    done = lm.run(record.tokens, hooks=hooks)
    for hook, layer in zip(hooks, record.layers, strict=True):
        _check(lm, hook, layer.mlp_in, done.activations[hook])
    _check(lm, "logits", weights.logits(record.final(weights)[:, -1:]), done.logits[:, -1:])


def layer_record(
    weights: LayerWeights,
    resid: Float[Tensor, "batch pos d_model"],
    mlp_raw: Float[Tensor, "batch pos d_model"],
) -> LayerRecord:
    """A block's quantities, from the stream before it and its MLP's output."""
    scale = weights.ln1.scale(resid)
    x = weights.ln1.linear(resid, scale) + weights.ln1.bias
    q, k, v = (
        einsum(x, W, "b p m, h m e -> b p h e") + b
        for W, b in (
            (weights.W_Q, weights.b_Q),
            (weights.W_K, weights.b_K),
            (weights.W_V, weights.b_V),
        )
    )
    q_scale, k_scale = weights.q_norm.scale(q), weights.k_norm.scale(k)
    q = weights.q_norm.linear(q, q_scale) + weights.q_norm.bias
    k = weights.k_norm.linear(k, k_scale) + weights.k_norm.bias
    places = torch.arange(resid.shape[1], device=resid.device)
    q, k = weights.rotate(q, places), weights.rotate(k, places)
    pattern = weights.pattern(weights.scores(q, k))
    z = einsum(pattern, v, "b h d s, b s h e -> b d h e")
    raw = einsum(z, weights.W_O, "b p h e, h e m -> b p m") + weights.b_O
    attn_scale, mlp_scale = weights.attn_post.scale(raw), weights.mlp_post.scale(mlp_raw)
    attn_out = weights.attn_post.linear(raw, attn_scale)
    mid = resid + attn_out
    read = resid if weights.parallel else mid
    scale2 = weights.ln2.scale(read)
    mlp_in = weights.ln2.linear(read, scale2) + weights.ln2.bias
    mlp_out = weights.mlp_post.linear(mlp_raw, mlp_scale)
    return LayerRecord(
        *(resid, scale, q_scale, k_scale, q, k, v, pattern, z, attn_scale, raw, attn_out, mid),
        *(scale2, mlp_in, mlp_raw, mlp_scale, mlp_out),
    )


def _check(lm: ActivationSource, hook: str, found: Tensor, own: Tensor) -> None:
    own = rearrange(own, "b p ... -> b p (...)").to(found.device, found.dtype)
    worst = float((found - own).abs().max() / own.abs().max().clamp_min(1e-12))
    allowed = TOLERANCE.get(getattr(torch, lm.info.dtype), COARSE)
    if not worst <= allowed:
        raise UsageError(
            f"{lm.info.name} computes {hook} in a way that cannot be linearised here: from its "
            f"weights it comes out {worst:.2g} off (relative), more than {allowed:g}."
        )

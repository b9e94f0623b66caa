"""What lies on the linear paths of a transformer, whatever its architecture.

    x = embed + position
    a = attn_post(z W_O + b_O), where z = pattern (ln1(x) W_V + b_V)
    m = mlp_post(mlp(ln2(x + a))), or mlp_post(mlp(ln2(x))) where attention and MLP are parallel
    x = x + a + m, and so on
    logits = soft_cap(ln_final(x) W_U + b_U)

With attention patterns and the scales of all norms held fixed, all of this is linear except the
MLPs and the final soft cap. If an architecture lacks a norm, `Norm.gain_only` stands for it, so
other code need not know the architecture.
"""

from dataclasses import dataclass, replace

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 8192
"""Tokens whose columns of W_U are converted together."""


@dataclass(frozen=True)
class Norm:
    """A layer norm; an RMS norm if not `centred`; only a gain if `epsilon` is None.

    Attributes:
        gain: factor of the output; includes the 1 of architectures with gain 1 + weight.
        bias: added after the gain.
        epsilon: added to the mean square; None if there is no norm and the scale is 1.
        centred: whether the mean is subtracted first.
        joint: whether one scale serves the last two dimensions (all heads) together.
    """

    gain: Float[Tensor, "*part d"]
    bias: Float[Tensor, "*part d"]
    epsilon: float | None
    centred: bool
    joint: bool = False

    @classmethod
    def gain_only(cls, gain: Float[Tensor, "*part d"]) -> "Norm":
        """Only a gain, without a norm: 1 for no effect, or a multiplier."""
        return cls(gain, torch.zeros_like(gain), None, centred=False)

    def scale(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows 1"]:
        """The number that the norm divides by."""
        if self.epsilon is None:
            return x.new_ones(*x.shape[:-1], 1)
        over = (-2, -1) if self.joint else (-1,)
        mean = self._centre(x).square().mean(over, keepdim=True)
        return (mean + self.epsilon).sqrt().expand(*x.shape[:-1], 1)

    def linear(
        self, x: Float[Tensor, "*rows d"], scale: Float[Tensor, "*#rows 1"]
    ) -> Float[Tensor, "*rows d"]:
        """The norm at a fixed scale, without its bias: linear in `x`."""
        return self._centre(x) / scale * self.gain

    def transpose(
        self, g: Float[Tensor, "*rows d"], scale: Float[Tensor, "*#rows 1"]
    ) -> Float[Tensor, "*rows d"]:
        """The transpose of `linear`: gradients at the norm's output to gradients at its input."""
        return self._centre(g * self.gain) / scale

    def of_head(self, head: int) -> "Norm":
        """One head's part of a norm of queries or keys; its scale must come from the model."""
        return replace(self, gain=self.gain[head], bias=self.bias[head])

    def _centre(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        return x - x.mean(-1, keepdim=True) if self.centred else x


@dataclass(frozen=True)
class Rotary:
    """Positions as rotations of the first `2 x pair` dimensions of a head (arXiv 2104.09864).

    Attributes:
        frequencies: angle per position of each pair; dimension i is paired with i + pair.
        factor: factor of the rotated dimensions (YaRN; arXiv 2309.00071).
    """

    frequencies: Float[Tensor, " pair"]
    factor: float = 1.0

    def turned(
        self, x: Float[Tensor, "*batch pos head d_head"], positions: Int[Tensor, " pos"]
    ) -> Float[Tensor, "*batch pos head d_head"]:
        """Queries or keys rotated by their positions; dimensions beyond the pairs stay."""
        # Angles are computed in float32, as transformers does.
        angles = positions[:, None].float() * self.frequencies.float()
        cos, sin = (
            (f(angles) * self.factor).to(x.dtype)[:, None].repeat(1, 1, 2)
            for f in (torch.cos, torch.sin)
        )
        turning, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], dim=-1)
        first, second = turning.chunk(2, dim=-1)
        return torch.cat([turning * cos + torch.cat([-second, first], dim=-1) * sin, rest], dim=-1)


@dataclass(frozen=True)
class LayerWeights:
    """One block; keys and values are repeated so that every query head has its own.

    Attributes:
        ln1: the norm before attention.
        ln2: the norm before the MLP.
        attn_post: applied to W_O's output before the residual stream: a norm, a multiplier, or
            nothing. Has no bias.
        mlp_post: the same after the MLP.
        q_norm, k_norm: norms of queries and keys, before the rotation; gains per head.
        rotary: rotation of queries and keys; None if the block has none.
        parallel: whether the MLP reads attention's input, without attention's output.
        scaling: factor of the scores, usually 1 / sqrt(d_head).
        soft_cap: scores s become c tanh(s / c); None for no cap.
        window: a token attends to itself and the window - 1 tokens before it; None for all before
            it.
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
    attn_post: Norm
    mlp_post: Norm
    q_norm: Norm
    k_norm: Norm
    rotary: Rotary | None
    scaling: float
    parallel: bool = False
    soft_cap: float | None = None
    window: int | None = None

    def rotate(
        self, x: Float[Tensor, "*batch pos head d_head"], positions: Int[Tensor, " pos"]
    ) -> Float[Tensor, "*batch pos head d_head"]:
        """Queries or keys rotated by their positions; unchanged if the block has no rotation."""
        return x if self.rotary is None else self.rotary.turned(x, positions)

    def scores(
        self,
        q: Float[Tensor, "batch pos head d_head"],
        k: Float[Tensor, "batch pos head d_head"],
    ) -> Float[Tensor, "batch head pos pos"]:
        """Attention scores before the soft cap and the mask, from normed and rotated q and k."""
        return einsum(q, k, "b d h e, b s h e -> b h d s") * self.scaling

    def pattern(
        self, scores: Float[Tensor, "batch head pos pos"]
    ) -> Float[Tensor, "batch head pos pos"]:
        """The attention of these scores: zero if the source is ahead or outside the window."""
        places = torch.arange(scores.shape[-1], device=scores.device)
        back = places[:, None] - places
        hidden = back < 0
        if self.window is not None:
            hidden |= back >= self.window
        return soft_capped(scores, self.soft_cap).masked_fill(hidden, -torch.inf).softmax(-1)


@dataclass(frozen=True)
class ModelWeights:
    """All weights on the linear paths of a model.

    Attributes:
        W_E, W_U: in the model's own dtype, since they may be large; `embedding` and `unembedding`
            convert parts.
        W_pos: None for rotary models.
        embed_scale: factor of the embeddings.
        logit_scale: factor of W_U.
        soft_cap: logits l become c tanh(l / c); None for no cap.
    """

    W_E: Float[Tensor, "d_vocab d_model"]
    W_pos: Float[Tensor, "n_ctx d_model"] | None
    layers: tuple[LayerWeights, ...]
    ln_final: Norm
    W_U: Float[Tensor, "d_model d_vocab"]
    b_U: Float[Tensor, " d_vocab"]  # noqa: N815
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    soft_cap: float | None = None

    def embedding(self, tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_model"]:
        """What these tokens' embeddings write to the stream, in the layers' dtype."""
        return (self.W_E[tokens] * self.embed_scale).to(self.ln_final.gain.dtype)

    def unembedding(self, tokens: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """The scaled columns of W_U for these tokens, in the layers' dtype."""
        return self.W_U[:, tokens].T.to(self.ln_final.gain.dtype) * self.logit_scale

    def linear_logits(
        self, normed: Float[Tensor, "*batch d_model"], tokens: Int[Tensor, " n"]
    ) -> Float[Tensor, "*batch n"]:
        """Logits of these tokens before the soft cap, from the final norm's output."""
        return normed @ self.unembedding(tokens).T + self.b_U[tokens]

    def logits(
        self, normed: Float[Tensor, "*batch d_model"], tokens: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, "*batch n"]:
        """Logits of these tokens, or of the whole vocabulary, from the final norm's output."""
        if tokens is None:
            tokens = torch.arange(self.W_U.shape[1], device=self.W_U.device)
        linear = [self.linear_logits(normed, part) for part in tokens.split(CHUNK)]
        return soft_capped(torch.cat(linear, dim=-1), self.soft_cap)


def soft_capped(x: Float[Tensor, "*n"], cap: float | None) -> Float[Tensor, "*n"]:
    """Values c * tanh(x / c), between -c and c = cap; x without a cap (arXiv 2408.00118)."""
    return x if cap is None else cap * (x / cap).tanh()

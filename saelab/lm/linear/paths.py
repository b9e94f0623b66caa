"""What lies on the linear paths of a transformer, whatever its architecture.

    x = embed + position
    a = attn_post(z W_O + b_O), where z = pattern (ln1(x) W_V + b_V)
    m = mlp_post(mlp(ln2(x + a))), or mlp_post(mlp(ln2(x))) where attention and MLP are parallel
    x = x + a + m, and so on
    logits = soft_cap(ln_final(x) W_U + b_U)

With attention patterns and the scales of all norms held fixed, all of this but the MLPs and the
last soft cap is linear. A norm that an architecture does not have is one that divides by nothing
(`Norm.gain_only`), so nobody else need ask which architecture it is.
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
    """A layer norm; an RMS norm where it is not `centred`; a mere gain where it has no `epsilon`.

    Attributes:
        gain: what its output is multiplied by; 1 + weight where the architecture has it so.
        bias: what is added then.
        epsilon: added to the mean square; None: there is no norm, and the scale is 1.
        centred: the mean is subtracted first.
        joint: one scale for the last two dimensions (all heads) together.
    """

    gain: Float[Tensor, "*part d"]
    bias: Float[Tensor, "*part d"]
    epsilon: float | None
    centred: bool
    joint: bool = False

    @classmethod
    def gain_only(cls, gain: Float[Tensor, "*part d"]) -> "Norm":
        """No norm, only a gain: 1 where there is nothing, or a multiplier."""
        return cls(gain, torch.zeros_like(gain), None, centred=False)

    def scale(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows 1"]:
        """What the norm divides by."""
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
        """One head's part of a norm of queries or keys; its scale is the model's to say."""
        return replace(self, gain=self.gain[head], bias=self.bias[head])

    def _centre(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        return x - x.mean(-1, keepdim=True) if self.centred else x


@dataclass(frozen=True)
class Rotary:
    """Positions as rotations of the first `2 x pair` dimensions of a head (arXiv 2104.09864).

    Attributes:
        frequencies: angle per position of each pair; dimension i is paired with i + pair.
        factor: by which what is turned grows (YaRN; arXiv 2309.00071).
    """

    frequencies: Float[Tensor, " pair"]
    factor: float = 1.0

    def turned(
        self, x: Float[Tensor, "*batch pos head d_head"], positions: Int[Tensor, " pos"]
    ) -> Float[Tensor, "*batch pos head d_head"]:
        """Queries or keys turned by their positions; dimensions behind the pairs stay."""
        # Angles are made in float32, as transformers makes them.
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
        ln1: before attention.
        ln2: before the MLP.
        attn_post: what W_O's output passes on its way into the stream: a norm, a multiplier, or
            nothing. Has no bias.
        mlp_post: the same behind the MLP.
        q_norm, k_norm: of queries and keys, before they are turned; gains by head.
        rotary: None: the block does not turn them.
        parallel: the MLP reads what attention reads, not what attention wrote.
        scaling: what scores are multiplied by; most often 1 / sqrt(d_head).
        soft_cap: scores s become c tanh(s / c); None: they stay.
        window: a token sees itself and the window - 1 before it; None: all before it.
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
        """Queries or keys turned by their positions; as they are where the block turns nothing."""
        return x if self.rotary is None else self.rotary.turned(x, positions)

    def scores(
        self,
        q: Float[Tensor, "batch pos head d_head"],
        k: Float[Tensor, "batch pos head d_head"],
    ) -> Float[Tensor, "batch head pos pos"]:
        """Attention scores before the soft cap and the mask; q and k as they are multiplied."""
        return einsum(q, k, "b d h e, b s h e -> b h d s") * self.scaling

    def pattern(
        self, scores: Float[Tensor, "batch head pos pos"]
    ) -> Float[Tensor, "batch head pos pos"]:
        """The attention of these scores: zero where the source lies ahead, or out of the window."""
        places = torch.arange(scores.shape[-1], device=scores.device)
        back = places[:, None] - places
        hidden = back < 0
        if self.window is not None:
            hidden |= back >= self.window
        return soft_capped(scores, self.soft_cap).masked_fill(hidden, -torch.inf).softmax(-1)


@dataclass(frozen=True)
class ModelWeights:
    """What lies on the linear paths of a model.

    Attributes:
        W_E, W_U: in the model's own dtype, since they may be large; `embedding` and `unembedding`
            convert what is asked for.
        W_pos: None for rotary models.
        embed_scale: what embeddings are multiplied by.
        logit_scale: what W_U is multiplied by.
        soft_cap: logits l become c tanh(l / c); None: they stay.
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
        """What these tokens write to the stream, in the number type of the layers."""
        return (self.W_E[tokens] * self.embed_scale).to(self.ln_final.gain.dtype)

    def unembedding(self, tokens: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """The scaled columns of W_U for these tokens, in the number type of the layers."""
        return self.W_U[:, tokens].T.to(self.ln_final.gain.dtype) * self.logit_scale

    def linear_logits(
        self, normed: Float[Tensor, "*batch d_model"], tokens: Int[Tensor, " n"]
    ) -> Float[Tensor, "*batch n"]:
        """Logits of these tokens before the soft cap; from the final norm's output."""
        return normed @ self.unembedding(tokens).T + self.b_U[tokens]

    def logits(
        self, normed: Float[Tensor, "*batch d_model"], tokens: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, "*batch n"]:
        """Logits of these tokens, or of the whole vocabulary; from the final norm's output."""
        if tokens is None:
            tokens = torch.arange(self.W_U.shape[1], device=self.W_U.device)
        linear = [self.linear_logits(normed, part) for part in tokens.split(CHUNK)]
        return soft_capped(torch.cat(linear, dim=-1), self.soft_cap)


def soft_capped(x: Float[Tensor, "*n"], cap: float | None) -> Float[Tensor, "*n"]:
    """Cap tanh(x / cap), which lies between -cap and cap; x without one (arXiv 2408.00118)."""
    return x if cap is None else cap * (x / cap).tanh()

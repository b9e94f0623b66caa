"""The heads that a latent of an attention-output SAE belongs to, by weights (arXiv 2406.17759)."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from saelab import drawing
from saelab.config import UsageError
from saelab.sae.base import AbstractSAE


@dataclass(frozen=True)
class HeadAttribution:
    """Each latent's share of each head: its decoder row's norm there over the sum of norms.

    A latent may write to other heads than it reads; `direct_feature_attribution` shows the
    encoder's side.
    """

    shares: Float[Tensor, "d_sae head"]

    def top_latents(self, head: int, n: int = 10) -> Int[Tensor, " n"]:
        """The latents with the largest share of a head, the largest first."""
        return self.shares[:, head].topk(min(n, len(self.shares))).indices

    def n_heads_used(self, share: float = 0.5) -> Int[Tensor, " d_sae"]:
        """The number of heads that together have this share of each latent."""
        mass = self.shares.sort(dim=1, descending=True).values.cumsum(1)
        return (mass < share).sum(1) + 1

    figure = drawing.figure


@torch.no_grad()
def head_attribution(sae: AbstractSAE, n_heads: int) -> HeadAttribution:
    """Each latent's share of each head, in [0, 1]; rows sum to 1 (0 for a row of zeros).

    Norms, not squared norms, as in the paper's code.

    Raises:
        UsageError: the SAE's width is not a multiple of the number of heads.
    """
    if sae.d_in % n_heads:
        raise UsageError(
            f"An SAE of width {sae.d_in} does not read {n_heads} heads; train one on attn.hook_z."
        )
    norms = rearrange(sae.W_dec.double(), "f (h e) -> f h e", h=n_heads).norm(dim=-1)
    return HeadAttribution(norms / norms.sum(1, keepdim=True).clamp_min(1e-300))

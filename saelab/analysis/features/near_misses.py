"""Latents that just failed to fire: the next after a token's selection, or just below threshold."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.sae.base import AbstractSAE
from saelab.types import SparseCodes

TINY = 1e-30
"""Stands for a threshold of zero, below which no positive number lies."""


@runtime_checkable
class Preselecting(Protocol):
    """An SAE that chooses among numbers it has for every latent."""

    def pre_activations(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """What it chooses among."""
        ...


@runtime_checkable
class Thresholded(Protocol):
    """An SAE that keeps what exceeds a threshold, one for all latents or one each."""

    threshold: Tensor


@dataclass(frozen=True)
class NearMisses:
    """Some latents of each row that did not fire.

    Attributes:
        row, latent: which.
        pre_activation: what was not selected.
        closeness: its size as a share of what would have fired: the row's smallest firing, or the
            latent's threshold.
    """

    row: Int[Tensor, " event"]
    latent: Int[Tensor, " event"]
    pre_activation: Float[Tensor, " event"]
    closeness: Float[Tensor, " event"]


def near_misses(
    sae: AbstractSAE, x: Float[Tensor, "batch d_in"], codes: SparseCodes, n: int
) -> NearMisses | None:
    """The `n` latents of each row that came closest to firing, where the SAE can tell.

    Sizes are pre-activations, or their magnitudes where the selection compares magnitudes. Nothing
    at or below zero counts. Costs a second pass through the encoder.
    """
    if not n or not isinstance(sae, Preselecting):
        return None
    pre = sae.pre_activations(x).float()
    size = pre.abs() if sae.config.sparsity.by_magnitude else pre
    closeness = size / _bar(sae, codes).clamp_min(TINY)
    active = codes.active
    closeness[codes.rows()[active], codes.indices[active]] = 0
    closest, latent = closeness.topk(min(n, codes.d_sae), dim=1)
    row, slot = (closest > 0).nonzero(as_tuple=True)
    latent = latent[row, slot]
    return NearMisses(row, latent, pre[row, latent], closest[row, slot])


def _bar(sae: AbstractSAE, codes: SparseCodes) -> Tensor:
    """What a size must exceed, `[batch, 1]`, `[d_sae]` or a number."""
    if isinstance(sae, Thresholded):
        return sae.threshold.float()
    codes = codes.rectangular()
    size = torch.where(codes.active, codes.values.abs(), torch.inf)
    # A row in which nothing fires has an infinite bar, and so no near miss.
    return torch.nn.functional.pad(size, (0, 1), value=torch.inf).amin(dim=1, keepdim=True)

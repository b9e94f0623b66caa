"""Figures of SAEs that several claims compare."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from saelab.sae.base import AbstractSAE
from saelab.sae.decoder import device_of
from saelab.types import SparseCodes

FOUND = 0.95
"""A latent with at least this cosine has found a planted atom."""


def fvu(x: Float[Tensor, "row d_in"], x_hat: Float[Tensor, "row d_in"]) -> float:
    """FVU of a reconstruction: squared error over the squared distance from the mean."""
    return float((x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum())


def fvus(saes: Sequence[AbstractSAE], x: Float[Tensor, "row d_in"]) -> list[float]:
    """FVU of each SAE on these rows."""
    return [fvu(on(sae, x), sae.reconstruct(on(sae, x))) for sae in saes]


def l0s(saes: Sequence[AbstractSAE], x: Float[Tensor, "row d_in"]) -> list[float]:
    """Mean L0 of each SAE on these rows."""
    return [sae.encode(on(sae, x)).mean_l0() for sae in saes]


def on(sae: AbstractSAE, x: Tensor) -> Tensor:
    """`x` on the SAE's device."""
    return x.to(device_of(sae))


def cosines(
    sae: AbstractSAE, atoms: Float[Tensor, "feature d_in"]
) -> Float[Tensor, "latent feature"]:
    """Cosines between learned and planted atoms."""
    return F.normalize(sae.W_dec.detach(), dim=1) @ on(sae, atoms).T


def share_found(sae: AbstractSAE, atoms: Float[Tensor, "feature d_in"]) -> float:
    """Share of the planted atoms that some learned atom equals (cosine above 0.95)."""
    return float((cosines(sae, atoms).amax(dim=0) > FOUND).float().mean())


def share_silent(sae: AbstractSAE, x: Float[Tensor, "row d_in"]) -> float:
    """The share of latents that fire on none of the rows."""
    return float((sae.encode(on(sae, x)).firing_counts() == 0).double().mean())


def precision(
    codes: SparseCodes, sign: int, label: Bool[Tensor, " row"]
) -> tuple[Float[Tensor, " d_sae"], Int[Tensor, " d_sae"]]:
    """For each latent, the share of its firings of this sign on rows with the label; their number.

    The share is NaN for latents without such firings.
    """
    fires = codes.values * sign > 0
    counts = torch.bincount(codes.indices[fires], minlength=codes.d_sae)
    on_label = fires & label[:, None]
    return torch.bincount(codes.indices[on_label], minlength=codes.d_sae) / counts, counts

"""Latents that almost fired: next after a token's selection, or just below the threshold."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.pursuit.select import top_k
from saelab.sae.base import AbstractSAE
from saelab.sae.preselecting import Preselecting, SelectingByThese
from saelab.types import SparseCodes

TINY = 1e-30
"""Replaces a threshold of zero, below which there is no positive number."""


@dataclass(frozen=True)
class NearMisses:
    """Some latents of each row that did not fire.

    Attributes:
        row, latent: the row and the latent of each.
        pre_activation: the value that was not selected.
        closeness: its size as a share of the value that would have fired: the row's smallest
            firing, or the latent's threshold.
    """

    row: Int[Tensor, " event"]
    latent: Int[Tensor, " event"]
    pre_activation: Float[Tensor, " event"]
    closeness: Float[Tensor, " event"]


def codes_and_near_misses(
    sae: AbstractSAE, x: Float[Tensor, "batch d_in"], n: int
) -> tuple[SparseCodes, NearMisses | None]:
    """The codes of each row, and its near misses if `n` are wanted and the SAE has pre-activations.

    One product with the encoder serves both where the codes follow from the pre-activations.
    """
    if not n or not isinstance(sae, Preselecting):  # pyrefly: ignore[unsafe-overlap]
        return sae.encode(x), None
    pre = sae.pre_activations(x)
    codes = sae.codes_from(pre) if isinstance(sae, SelectingByThese) else sae.encode(x)
    return codes, near_misses(sae, pre.float(), codes, n)


def near_misses(
    sae: AbstractSAE, pre: Float[Tensor, "batch d_sae"], codes: SparseCodes, n: int
) -> NearMisses:
    """The `n` latents of each row that came closest to firing, by its pre-activations and codes.

    Sizes are pre-activations, or magnitudes if the selection compares magnitudes. Sizes at or below
    zero do not count.
    """
    size = pre.abs() if sae.config.sparsity.by_magnitude else pre
    closeness = size / _bar(sae, codes).clamp_min(TINY)
    codes = codes.rectangular()
    # The least of it and zero, since a GPU need not find the active entries first.
    fired = torch.where(codes.active, 0.0, torch.inf)
    closeness.scatter_reduce_(1, codes.indices, fired, "amin")
    closest = top_k(closeness, min(n, codes.d_sae))
    row, slot = (closest.values > 0).nonzero(as_tuple=True)
    latent = closest.indices[row, slot]
    return NearMisses(row, latent, pre[row, latent], closest.values[row, slot])


def _bar(sae: AbstractSAE, codes: SparseCodes) -> Tensor:
    """The size that must be exceeded: `[batch, 1]`, `[d_sae]` or a number."""
    # A protocol's check sees no parameters and buffers since Python 3.12.
    if isinstance(threshold := getattr(sae, "threshold", None), Tensor):
        return threshold.float()
    codes = codes.rectangular()
    size = torch.where(codes.active, codes.values.abs(), torch.inf)
    # A row without firings has an infinite limit, and so no near miss.
    return torch.nn.functional.pad(size, (0, 1), value=torch.inf).amin(dim=1, keepdim=True)

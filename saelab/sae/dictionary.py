"""Operations on a dictionary of atoms: initialisation, unit norm, and the tangent projection."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

UNIT = 1e-5
"""Largest deviation from norm 1, in float32, of an atom that was normalised."""


def random_unit_rows(
    n: int, width: int, generator: torch.Generator | None = None
) -> Float[Tensor, "n width"]:
    """`n` directions drawn uniformly from the unit sphere."""
    return torch.nn.functional.normalize(torch.randn(n, width, generator=generator), dim=1)


def moderate_scale(d_sae: int, d_in: int) -> float:
    """The factor, at most 1, that gives sum_j ReLU(w_j . x) w_j about the norm of x.

    The atoms w_j are random unit vectors, so about half of the terms are positive.
    """
    return min(1.0, 2 * d_in / d_sae)


@torch.no_grad()
def remove_radial_gradient(W_dec: Tensor) -> None:
    """Remove each atom's radial gradient; the part tangent to the unit sphere stays.

    The renormalisation after the step would undo the radial part, but the optimizer's moments would
    already contain it.
    """
    if W_dec.grad is not None:
        W_dec.grad -= (W_dec.grad * W_dec).sum(dim=1, keepdim=True) * W_dec


@torch.no_grad()
def normalise_rows(W_dec: Tensor) -> None:
    """Scale every atom to unit norm; called after the optimizer's step, so saved atoms are unit."""
    W_dec.div_(W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))


@torch.no_grad()
def move_norms(W_dec: Tensor, W_enc: Tensor, *by_latent: Tensor) -> None:
    """Make every atom unit and multiply its codes by the old norm; unit atoms stay bit-equal.

    z @ W_dec does not change. `by_latent` are the tensors `[d_sae]` in units of pre-activations
    (biases, thresholds); they are scaled too.
    """
    norms = W_dec.norm(dim=1)
    if bool(((norms - 1).abs() < UNIT).all()):
        return
    normalise_rows(W_dec)
    W_enc.mul_(norms)
    for values in by_latent:
        values.mul_(norms)


def site_norms(
    W_dec: Float[Tensor, "d_sae d"], widths: Sequence[int]
) -> Float[Tensor, "d_sae site"]:
    """||w_i|| of each atom at each site; the sites' parts of an atom have these widths."""
    parts = W_dec.split(list(widths), dim=1)
    return torch.stack([part.norm(dim=1) for part in parts], dim=1)


def default_aux_k(d_in: int, d_sae: int) -> int:
    """The power of two nearest to d_in / 2 (arXiv 2406.04093, appendix B.1), at most d_sae."""
    return min(d_sae, 2 ** max(0, round(torch.tensor(d_in / 2).log2().item())))


def geometric_median(
    points: Float[Tensor, "n d_in"], *, iterations: int = 100, tolerance: float = 1e-5
) -> Float[Tensor, " d_in"]:
    """The point whose summed distance to `points` is least, by Weiszfeld's iteration.

    The iteration stops when a step is shorter than `tolerance` times the points' mean distance.
    """
    center = points.mean(dim=0)
    for _ in range(iterations):
        distances = (points - center).norm(dim=1).clamp_min(1e-12)
        weights = 1 / distances
        new = (weights / weights.sum()) @ points
        if bool((new - center).norm() <= tolerance * distances.mean()):
            return new
        center = new
    return center

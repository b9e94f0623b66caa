"""Operations on a dictionary of atoms: initialisation, unit norm, and the tangent projection."""

import torch
from jaxtyping import Float
from torch import Tensor

UNIT = 1e-5
"""How far from 1 the norm of an atom is that was made unit, in float32."""


def random_unit_rows(
    n: int, width: int, generator: torch.Generator | None = None
) -> Float[Tensor, "n width"]:
    """`n` directions drawn uniformly from the unit sphere."""
    return torch.nn.functional.normalize(torch.randn(n, width, generator=generator), dim=1)


def moderate_scale(d_sae: int, d_in: int) -> float:
    """The factor of sum_j ReLU(w_j . x) w_j, over random unit atoms, that gives it x's size.

    About half of the terms are positive; at most 1.
    """
    return min(1.0, 2 * d_in / d_sae)


@torch.no_grad()
def remove_radial_gradient(W_dec: Tensor) -> None:
    """Keep of each atom's gradient what is tangent to the unit sphere.

    The radial part would be undone by the renormalisation after the step, but would first have
    entered the optimizer's moments.
    """
    if W_dec.grad is not None:
        W_dec.grad -= (W_dec.grad * W_dec).sum(dim=1, keepdim=True) * W_dec


@torch.no_grad()
def normalise_rows(W_dec: Tensor) -> None:
    """Scale every atom to unit norm; done after the optimizer's step, so saved atoms are unit."""
    W_dec.div_(W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))


@torch.no_grad()
def move_norms(W_dec: Tensor, W_enc: Tensor, *by_latent: Tensor) -> None:
    """Make every atom unit and let the codes take over its norm; unit ones stay to the bit.

    z @ W_dec stays as it is. `by_latent` are what pre-activations are compared with or shifted by.
    """
    norms = W_dec.norm(dim=1)
    if bool(((norms - 1).abs() < UNIT).all()):
        return
    normalise_rows(W_dec)
    W_enc.mul_(norms)
    for values in by_latent:
        values.mul_(norms)


def default_aux_k(d_in: int, d_sae: int) -> int:
    """The power of two nearest to d_in / 2 (arXiv 2406.04093, appendix B.1), at most d_sae."""
    return min(d_sae, 2 ** max(0, round(torch.tensor(d_in / 2).log2().item())))


def geometric_median(
    points: Float[Tensor, "n d_in"], *, iterations: int = 100, tolerance: float = 1e-5
) -> Float[Tensor, " d_in"]:
    """The point with the least summed distance to `points`, by Weiszfeld's iteration.

    Stops when a step is shorter than `tolerance` times the points' mean distance.
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

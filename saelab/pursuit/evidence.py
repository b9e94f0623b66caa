"""How well states of the latents explain a row, if values are fixed or normally distributed."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.pursuit.truncation import Evidence, States


def fixed_evidence(
    x: Float[Tensor, "row d_in"],
    atoms: Float[Tensor, "latent d_in"],
    sizes: Float[Tensor, " latent"],
    variance: Float[Tensor, ""],
    states: States,
    *,
    by_cosine: bool,
) -> Evidence:
    """The states' log-likelihoods if a latent that is on adds its atom times its size and a sign.

    Candidates have the largest cosine with the row, or the largest log-likelihood if alone.

    Args:
        x: rows, without the bias.
        atoms: unit rows.
        sizes: one for each latent.
        variance: of the noise in each dimension.
        states: the states with several latents on.
        by_cosine: how candidates are chosen.
    """
    sign = sizes.new_tensor(states.each)[:, None]
    along = x @ atoms.T
    one = (sign * (sizes * along)[:, None, :] - sizes.square() / 2) / variance
    scores = along if by_cosine else one.amax(dim=1)
    candidates = scores.topk(states.n_candidates, dim=1).indices
    linear = (sizes * along).gather(1, candidates) @ states.signed
    square = _gram(atoms, candidates, sizes).flatten(1) @ states.pairs
    return Evidence(
        states,
        candidates,
        one,
        (linear - square / 2) / variance,
        sign[None],
        torch.zeros_like(sizes[:1]),
        states.signs[..., None],
    )


def normal_evidence(
    x: Float[Tensor, "row d_in"],
    atoms: Float[Tensor, "latent d_in"],
    mu: Float[Tensor, " latent"],
    spread: Float[Tensor, " latent"],
    variance: Float[Tensor, ""],
    states: States,
) -> Evidence:
    """The states' log-likelihoods if a latent that is on adds z ~ N(mu, spread^2) atoms.

    z is integrated out: with L = A A^T / variance + diag(1 / spread^2) and u = A (x - mu A) /
    variance for the atoms A of a state, its mean is mu + L^-1 u and its covariance L^-1 (Sheikh et
    al., JMLR 15, 2014). Candidates have the largest log-likelihood if alone.
    """
    along = x @ atoms.T
    precision = spread.square().reciprocal()
    alone, pull = precision + 1 / variance, (along - mu) / variance
    one = (mu * along - mu.square() / 2) / variance + pull.square() / (2 * alone)
    one = one - (alone / precision).log() / 2
    candidates = one.topk(states.n_candidates, dim=1).indices
    places, used = states.places, states.used[..., None]

    def of_slots(values: Float[Tensor, "row candidate"]) -> Float[Tensor, "slot state row"]:
        return values.T[places] * used

    # Rows come last, so that an entry of all the small matrices is one piece of memory.
    both = used[:, None] * used
    product = _gram(atoms, candidates).permute(1, 2, 0)[places[:, None], places] * both
    mean, near = of_slots(mu[candidates]), of_slots(along.gather(1, candidates))
    moved = (product * mean).sum(1)
    pull_several = (near - moved) / variance
    held = of_slots(precision[candidates]) + (1 - used)
    matrix = product / variance
    matrix.diagonal(dim1=0, dim2=1).add_(held.permute(1, 2, 0))
    covariance, log_det = _inverse(matrix)
    shift = (covariance * pull_several).sum(1)
    several = (mean * (near - moved / 2)).sum(0) / variance + (pull_several * shift).sum(0) / 2
    several = several + (held.log().sum(0) - log_det) / 2
    value = (mu + pull / alone)[:, None]
    values, covariance = (mean + shift) * used, covariance * both
    return Evidence(
        states, candidates, one[:, None], several.T, value, 1 / alone, values, covariance
    )


def _gram(
    atoms: Float[Tensor, "latent d_in"],
    candidates: Int[Tensor, "row candidate"],
    sizes: Float[Tensor, " latent"] | None = None,
) -> Float[Tensor, "row candidate candidate"]:
    """The products of each row's candidate atoms, times their sizes."""
    chosen = atoms[candidates]
    if sizes is not None:
        chosen = chosen * sizes[candidates][..., None]
    return chosen @ chosen.transpose(1, 2)


def _inverse(
    matrix: Float[Tensor, "n n *many"],
) -> tuple[Float[Tensor, "n n *many"], Float[Tensor, "*many"]]:
    """Inverse and log determinant of many small positive definite matrices, by Gauss and Jordan.

    Far faster than a call of LAPACK for each. `matrix` is overwritten.
    """
    log_det = torch.zeros_like(matrix[0, 0])
    for k in range(len(matrix)):
        pivot = matrix[k, k].clone()
        log_det += pivot.log()
        row, column = matrix[k] / pivot, matrix[:, k].clone()
        matrix -= column[:, None] * row
        matrix[k], matrix[:, k] = row, -column / pivot
        matrix[k, k] = 1 / pivot
    return matrix, log_det

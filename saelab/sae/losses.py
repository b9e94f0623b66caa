"""Loss terms shared by the variants."""

from jaxtyping import Float
from torch import Tensor

from saelab.kernels import sparse_decode
from saelab.sae.base import LossContext
from saelab.types import LossTerms, SparseCodes


def squared_error(
    x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]
) -> Float[Tensor, ""]:
    """||x - x_hat||^2, summed over d_in, mean over the batch."""
    return (x - x_hat).pow(2).sum(-1).mean()


def aux_k_loss(
    x: Float[Tensor, "batch d_in"],
    x_hat: Float[Tensor, "batch d_in"],
    dead_codes: SparseCodes,
    W_dec: Float[Tensor, "d_sae d_in"],
) -> Float[Tensor, ""]:
    """How badly dead latents alone model what the others missed (arXiv 2406.04093, appendix A.2).

    The residual is detached and the reconstruction has no bias, so the gradient reaches the dead
    latents (encoder and decoder) and nothing else. It is divided by the residual's own variance:
    1 means that the dead latents explain nothing of it. Zero if the residual has no variance.
    """
    residual = (x - x_hat).detach()
    residual_hat = sparse_decode(dead_codes, W_dec)
    variance = (residual - residual.mean(dim=0)).pow(2).sum()
    return ((residual_hat - residual).pow(2).sum() / variance).nan_to_num(0.0, 0.0, 0.0)


def weighted_total(
    mse_sum: Float[Tensor, ""],
    codes: SparseCodes,
    context: LossContext,
    parts: dict[str, tuple[float, Float[Tensor, ""]]],
) -> LossTerms:
    """mse_sum / V plus every part times its weight; `parts` maps a name to (weight, term)."""
    total = mse_sum / context.total_variance
    for weight, part in parts.values():
        total = total + weight * part
    return LossTerms(
        total, mse_sum.detach(), codes, {name: part.detach() for name, (_, part) in parts.items()}
    )

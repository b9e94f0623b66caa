"""Loss terms shared by the variants."""

from jaxtyping import Float
from torch import Tensor

from saelab.sae.base import AbstractSAE
from saelab.sae.context import LossContext
from saelab.shard import ALONE, Replicas
from saelab.types import ActivationBatch, LossTerms, TrainingPass


def squared_error(
    x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]
) -> Float[Tensor, ""]:
    """||x - x_hat||^2, summed over d_in, mean over the batch."""
    return (x - x_hat).pow(2).sum(-1).mean()


def weighted_l1(
    z: Float[Tensor, "batch d_sae"], W_dec: Float[Tensor, "d_sae d_out"], context: LossContext
) -> Float[Tensor, ""]:
    """sum_j z_j ||w_j|| of codes z >= 0, mean over the batch, divided by sqrt(V); dimensionless."""
    return (z @ W_dec.norm(dim=1)).mean() / context.total_variance**0.5


def aux_k_loss(
    residual: Float[Tensor, "batch d_in"],
    residual_hat: Float[Tensor, "batch d_in"],
    replicas: Replicas = ALONE,
) -> Float[Tensor, ""]:
    """The error of dead latents alone at modelling the residual (arXiv 2406.04093, appendix A.2).

    The residual is detached and the reconstruction has no bias, so the gradient reaches only the
    dead latents (encoder and decoder). The error is divided by the residual's variance: 1 means
    that the dead latents explain nothing. The loss is zero if the residual has no variance. Both
    are those of all `replicas`' rows.
    """
    residual = residual.detach()
    mean = replicas.mean_all(residual.mean(dim=0))
    variance = replicas.mean_all((residual - mean).pow(2).sum())
    error = replicas.mean_all((residual_hat - residual).pow(2).sum())
    return (error / variance).nan_to_num(0.0, 0.0, 0.0)


def local_loss(sae: AbstractSAE, batch: ActivationBatch, context: LossContext) -> LossTerms:
    """The usual training loss: the pass's error / V plus each further term times its weight.

    An error that is dimensionless already, of u u^T, is not divided.
    """
    done = sae.training_pass(batch, context)
    scale = context.total_variance if done.outer is None else 1.0
    return total_loss(done.error / scale, batch.wanted, done)


def total_loss(
    main: Float[Tensor, ""],
    wanted: Float[Tensor, "batch d_out"],
    done: TrainingPass,
    reported: dict[str, Float[Tensor, ""]] | None = None,
) -> LossTerms:
    """`main` plus the pass's weighted parts; `reported` are the parts of `main` to log.

    `wanted` is what the pass reconstructs.
    """
    parts = {name: part.detach() for name, (_, part) in done.parts.items()}
    parts |= {name: part.detach() for name, part in (reported or {}).items()}
    total = main
    for weight, part in done.parts.values():
        total = total + weight * part
    if done.outer is not None:
        return LossTerms(total, done.outer.error, done.codes, parts, done.outer.variance)
    mse_sum = squared_error(wanted, done.activations).detach()
    return LossTerms(total, mse_sum, done.codes, parts)

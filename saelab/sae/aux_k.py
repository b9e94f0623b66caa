"""AuxK: dead latents learn what the living ones miss (arXiv 2406.04093, appendix A.2)."""

import abc
from collections.abc import Callable

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from typing_extensions import TypeVar

from saelab.sae.base import AbstractSAE, AbstractSAEConfig
from saelab.sae.context import LossContext
from saelab.sae.dictionary import default_aux_k
from saelab.sae.losses import aux_k_loss
from saelab.shard import replicas_of
from saelab.types import SparseCodes, TrainingPass

DeadCodes = Callable[[Bool[Tensor, " d_sae"], int], SparseCodes]
"""The codes of the dead latents, at most a given number per row; differentiable."""


class AuxKConfig(AbstractSAEConfig, abc.ABC):
    """Options of a variant whose dead latents are revived by AuxK."""

    aux_k: int | None = Field(default=None, ge=0)
    """Dead latents used by AuxK; default: the power of two nearest d_in / 2 (d_out / 2 for a
    transcoder; arXiv 2406.04093)."""
    aux_coefficient: float = Field(default=1 / 32, ge=0)
    """Weight of AuxK in the loss (arXiv 2406.04093: 1/32); 0 switches it off."""

    def n_aux(self, d_out: int) -> int:
        """Dead latents that AuxK uses in each row; 0 if AuxK is off."""
        if not self.aux_coefficient:
            return 0
        return default_aux_k(d_out, self.d_sae) if self.aux_k is None else self.aux_k

    def aux_rule(self, d_out: int) -> tuple[int, float] | None:
        """The same and their weight, as `FusedRule.aux` has them."""
        n = self.n_aux(d_out)
        return (n, self.aux_coefficient) if n else None


AuxKConfigT = TypeVar("AuxKConfigT", bound=AuxKConfig, covariant=True, default=AuxKConfig)


def add_aux_k(
    done: TrainingPass,
    sae: AbstractSAE[AuxKConfig],
    wanted: Float[Tensor, "batch d_out"],
    context: LossContext,
    dead_codes: DeadCodes,
) -> None:
    """Add AuxK to the pass's parts, unless AuxK is off or no latent is dead.

    `wanted` is what the pass reconstructs.
    """
    n = sae.config.n_aux(sae.d_out)
    if context.dead is None or not n:
        return
    # A latent that fires in this batch is no longer dead.
    replicas = replicas_of(sae.shard)
    dead = context.dead & (replicas.sum_all(done.codes.firing_counts()) == 0)
    aux = aux_k_loss(wanted - done.activations, sae.written(dead_codes(dead, n)), replicas)
    done.parts["aux_k"] = (sae.config.aux_coefficient, aux)

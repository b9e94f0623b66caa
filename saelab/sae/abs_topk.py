"""AbsTopK SAE: the k latents of largest magnitude, signs kept (arXiv 2510.00404)."""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from saelab.pursuit.select import abs_top_k, abs_top_k_among
from saelab.sae.base import AbstractSAEConfig, LossContext, check_k, check_rows
from saelab.sae.dictionary import default_aux_k
from saelab.sae.losses import aux_k_loss, squared_error, weighted_total
from saelab.sae.unit_norm import AbstractUnitNormSAE
from saelab.types import ActivationBatch, LossTerms, SparseCodes


class AbsTopKConfig(AbstractSAEConfig):
    """AbsTopK: the k pre-activations of largest magnitude in each row (arXiv 2510.00404)."""

    variant: Literal["abs-topk"] = "abs-topk"
    k: int = Field(default=32, gt=0)
    """Latents active per token, of either sign."""
    aux_k: int | None = Field(default=None, ge=0)
    """Dead latents used by AuxK; default: the power of two nearest d_in/2."""
    aux_coefficient: float = Field(default=1 / 32, ge=0)
    """Weight of AuxK in the loss; 0 switches it off."""

    @override
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "AbsTopK":
        check_k(self.k, self.d_sae)
        return AbsTopK(self, d_in, generator)


class AbsTopK(AbstractUnitNormSAE):
    """z = the projection of a onto vectors with k non-zeros: one latent can hold both poles."""

    def __init__(
        self, config: AbsTopKConfig, d_in: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(d_in, config.d_sae, generator)
        self.config = config
        self.k = config.k
        self.aux_coefficient = config.aux_coefficient
        self.aux_k = default_aux_k(d_in, config.d_sae) if config.aux_k is None else config.aux_k

    @override
    def encode(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        check_rows(x, self.d_in)
        return abs_top_k(self.pre_activations(x), self.k)

    @override
    def loss(self, batch: ActivationBatch, context: LossContext) -> LossTerms:
        pre_acts = self.pre_activations(batch.x)
        codes = abs_top_k(pre_acts, self.k)
        x_hat = self.decode(codes)
        parts: dict[str, tuple[float, Tensor]] = {}
        if context.dead is not None and self.aux_coefficient and self.aux_k:
            dead_codes = abs_top_k_among(pre_acts, context.dead, self.aux_k)
            aux = aux_k_loss(batch.x, x_hat, dead_codes, self.W_dec)
            parts["aux_k"] = (self.aux_coefficient, aux)
        return weighted_total(squared_error(batch.x, x_hat), codes, context, parts)

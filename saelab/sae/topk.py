"""TopK SAE: k latents per row, and dead latents kept alive by AuxK (arXiv 2406.04093)."""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from saelab.pursuit.select import top_k, top_k_among
from saelab.sae.base import AbstractSAEConfig, LossContext, check_k, check_rows
from saelab.sae.dictionary import default_aux_k
from saelab.sae.losses import aux_k_loss, squared_error, weighted_total
from saelab.sae.unit_norm import AbstractUnitNormSAE
from saelab.types import ActivationBatch, LossTerms, SparseCodes


class TopKConfig(AbstractSAEConfig):
    """TopK: the k largest pre-activations of each row, rectified (arXiv 2406.04093)."""

    variant: Literal["topk"] = "topk"
    k: int = Field(default=32, gt=0)
    """Latents active per token (the paper's GPT-2 runs: 32)."""
    aux_k: int | None = Field(default=None, ge=0)
    """Dead latents used by AuxK; default: the power of two nearest d_in/2 (paper, app. B.1)."""
    aux_coefficient: float = Field(default=1 / 32, ge=0)
    """Weight of AuxK in the loss (paper: 1/32); 0 switches it off."""
    multi_k_coefficient: float = Field(default=0.0, ge=0)
    """Weight of a second reconstruction with 4k latents (Multi-TopK; paper: 1/8); 0 is off."""

    @override
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "TopK":
        check_k(self.k, self.d_sae)
        return TopK(self, d_in, generator)


class TopK(AbstractUnitNormSAE):
    """z = ReLU(TopK_k(a)); with k = d_sae this is a ReLU autoencoder."""

    def __init__(
        self, config: TopKConfig, d_in: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(d_in, config.d_sae, generator)
        self.config = config
        self.k = config.k
        self.aux_coefficient = config.aux_coefficient
        self.multi_k_coefficient = config.multi_k_coefficient
        self.aux_k = default_aux_k(d_in, config.d_sae) if config.aux_k is None else config.aux_k

    @override
    def encode(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        check_rows(x, self.d_in)
        return top_k(self.pre_activations(x), self.k)

    @override
    def loss(self, batch: ActivationBatch, context: LossContext) -> LossTerms:
        x = batch.x
        pre_acts = self.pre_activations(x)
        codes = top_k(pre_acts, self.k)
        x_hat = self.decode(codes)
        mse_sum = squared_error(x, x_hat)
        parts: dict[str, tuple[float, Tensor]] = {}
        if self.multi_k_coefficient:
            wider = self.decode(top_k(pre_acts, min(4 * self.k, self.d_sae)))
            error = squared_error(x, wider) / context.total_variance
            parts["multi_k"] = (self.multi_k_coefficient, error)
        if context.dead is not None and self.aux_coefficient and self.aux_k:
            dead_codes = top_k_among(pre_acts, context.dead, self.aux_k)
            aux = aux_k_loss(x, x_hat, dead_codes, self.W_dec)
            parts["aux_k"] = (self.aux_coefficient, aux)
        return weighted_total(mse_sum, codes, context, parts)

"""TopK SAE: k latents per row, and dead latents kept alive by AuxK (arXiv 2406.04093)."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from saelab.kernels.cuda import MAX_K
from saelab.kernels.rules import FusedRule
from saelab.pursuit.select import top_k
from saelab.sae.aux_k import AuxKConfig
from saelab.sae.checks import check_k, check_rows
from saelab.sae.context import LossContext
from saelab.sae.in_blocks import largest_of_all
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.losses import squared_error
from saelab.sae.sparsity import Sparsity
from saelab.sae.unit_norm import AbstractUnitNormSAE
from saelab.types import ActivationBatch, SparseCodes, TrainingPass

WIDER = 4
"""The second reconstruction of Multi-TopK uses this many times k latents."""


class TopKConfig(AuxKConfig):
    """TopK: the k largest pre-activations of each row, rectified (arXiv 2406.04093)."""

    variant: Literal["topk"] = "topk"
    k: int = Field(default=32, gt=0)
    """Latents active per token (the paper's GPT-2 runs: 32)."""
    multi_k_coefficient: float = Field(default=0.0, ge=0)
    """Weight of a second reconstruction with 4k latents (Multi-TopK; paper: 1/8); 0 is off."""

    @property
    @override
    def spread_problem(self) -> str | None:
        return None

    @property
    @override
    def sparsity(self) -> Sparsity:
        return Sparsity("row", self.k)

    @classmethod
    @override
    def of_foreign(cls, foreign: ForeignSAE) -> "TopKConfig | None":
        if foreign.k is None or foreign.signed:
            return None
        return cls(d_sae=foreign.d_sae, k=foreign.k)

    @override
    def check(self) -> None:
        check_k(self.k, self.d_sae)

    @override
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "TopK":
        self.check()
        return TopK(self, d_in, generator)

    @property
    @override
    def several_reconstructions(self) -> str | None:
        if self.multi_k_coefficient:
            return "Multi-TopK compares two reconstructions"
        return None


class TopK(AbstractUnitNormSAE[TopKConfig]):
    """z = ReLU(TopK_k(a)); with k = d_sae this is a ReLU autoencoder."""

    def __init__(
        self, config: TopKConfig, d_in: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(d_in, config.d_sae, generator)
        self.config = config

    @override
    def encode(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        check_rows(x, self.d_in)
        return largest_of_all(self.affine_encoder(), x, self.config.k)

    def codes_from(self, pre_acts: Float[Tensor, "batch d_sae"]) -> SparseCodes:
        """The codes that `encode` makes of rows with these pre-activations."""
        return top_k(pre_acts, self.config.k)

    @override
    def training_pass(self, batch: ActivationBatch, context: LossContext) -> TrainingPass:
        k = self.config.k
        pre_acts, codes = self.choose(batch.x, lambda a: self.kept(top_k, a, k))
        done = self.selected_pass(batch, pre_acts, codes, context, top_k)
        if self.config.multi_k_coefficient:
            more = self.kept(top_k, pre_acts, min(WIDER * k, self.config.d_sae))
            wider = self.decode(self.differentiable(more, batch.x), batch.x)
            error = squared_error(batch.wanted, wider) / context.total_variance
            done.parts["multi_k"] = (self.config.multi_k_coefficient, error)
        return done

    @override
    def fused_rule(self) -> FusedRule | str:
        k, weight = self.config.k, self.config.multi_k_coefficient
        if not weight:
            return self.selected_rule(k)
        widest = min(WIDER * k, self.config.d_sae)
        if k == widest:
            return f"k={k} is all its latents, and Multi-TopK's second reconstruction has no more"
        if widest > MAX_K:
            return (
                f"Multi-TopK's second reconstruction has {widest} latents, and {MAX_K} is the most"
            )
        return self.selected_rule(k, groups=2, budgets=(k, widest), wider=weight)

    @override
    def foreign_rule(self) -> dict[str, Any]:
        return {"k": self.config.k}

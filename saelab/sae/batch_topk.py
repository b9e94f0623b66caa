"""BatchTopK SAE: k latents a row on average, more where needed (arXiv 2412.06410)."""

from typing import Literal

import torch
from pydantic import Field
from typing_extensions import override

from saelab.pursuit.select import batch_top_k, top_k
from saelab.sae.aux_k import AuxKConfig
from saelab.sae.batch_selection import AbstractBatchSelectionSAE
from saelab.sae.checks import check_k
from saelab.sae.context import LossContext
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.sparsity import Sparsity
from saelab.types import ActivationBatch, TrainingPass


class BatchTopKConfig(AuxKConfig):
    """BatchTopK: the batch's k largest pre-activations per row on average (arXiv 2412.06410)."""

    variant: Literal["batch-topk"] = "batch-topk"
    k: float | int = Field(default=32, gt=0)
    """Latents active per token on average; may be a fraction (paper: 16, 32, 64)."""

    @property
    @override
    def spread_problem(self) -> str | None:
        return None

    @property
    @override
    def sparsity(self) -> Sparsity:
        return Sparsity("batch", self.k)

    @classmethod
    @override
    def of_foreign(cls, foreign: ForeignSAE) -> "BatchTopKConfig | None":
        k = foreign.batch_k
        if k is None or not foreign.has_one_threshold or foreign.prefixes is not None:
            return None
        return cls(d_sae=foreign.d_sae, k=k)

    @override
    def check(self) -> None:
        check_k(self.k, self.d_sae)

    @override
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "BatchTopK":
        self.check()
        return BatchTopK(self, d_in, generator)


class BatchTopK(AbstractBatchSelectionSAE[BatchTopKConfig]):
    """z = ReLU of the batch * k largest entries of the batch; one threshold at inference."""

    def __init__(
        self, config: BatchTopKConfig, d_in: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(d_in, config.d_sae, config.k, generator)
        self.config = config

    @override
    def training_pass(self, batch: ActivationBatch, context: LossContext) -> TrainingPass:
        pre_acts, codes = self.choose(batch.x, lambda a: self.kept(batch_top_k, a, self.k))
        return self.selected_pass(batch, pre_acts, codes, context, top_k)

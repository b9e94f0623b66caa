"""AbsTopK SAE: the k latents of largest magnitude, signs kept (arXiv 2510.00404)."""

from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from saelab.kernels.rules import FusedRule
from saelab.pursuit.select import abs_top_k, batch_top_k
from saelab.sae.aux_k import AuxKConfig
from saelab.sae.batch_selection import AbstractBatchSelectionSAE
from saelab.sae.checks import check_k, check_rows
from saelab.sae.context import LossContext
from saelab.sae.in_blocks import largest_of_all
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.sparsity import Sparsity
from saelab.sae.unit_norm import AbstractUnitNormSAE
from saelab.types import ActivationBatch, SparseCodes, TrainingPass

SIGNED = partial(batch_top_k, signed=True)


class AbsTopKConfig(AuxKConfig):
    """AbsTopK: the k pre-activations of largest magnitude (arXiv 2510.00404)."""

    variant: Literal["abs-topk"] = "abs-topk"
    k: int = Field(default=32, gt=0)
    """Latents active per token, of either sign."""
    selection: Literal["row", "batch"] = "row"
    """Choose k in each row (the paper's text) or k per row on average in the batch (its code, whose
    baseline is BatchTopK)."""
    subtract_b_dec: bool = True
    """Whether the encoder reads x - b_dec (the authors' code: yes) or x (the paper's formula). A
    transcoder's always reads x - b_in."""

    @property
    @override
    def spread_problem(self) -> str | None:
        return None

    @property
    @override
    def sparsity(self) -> Sparsity:
        return Sparsity(self.selection, self.k, signed=True, by_magnitude=True)

    @classmethod
    @override
    def of_foreign(cls, foreign: ForeignSAE) -> "AbsTopKConfig | None":
        if foreign.k is None or not foreign.signed:
            return None
        return cls(d_sae=foreign.d_sae, k=foreign.k)

    @override
    def check(self) -> None:
        check_k(self.k, self.d_sae)

    @override
    def build(
        self, d_in: int, generator: torch.Generator | None = None
    ) -> "AbsTopK | BatchAbsTopK":
        self.check()
        cls = AbsTopK if self.selection == "row" else BatchAbsTopK
        return cls(self, d_in, generator)


class AbsTopK(AbstractUnitNormSAE[AbsTopKConfig]):
    """z = the projection of a onto vectors with k non-zeros: one latent can hold both poles."""

    def __init__(
        self, config: AbsTopKConfig, d_in: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(d_in, config.d_sae, generator)
        self.config = config

    @property
    @override
    def centres(self) -> bool:
        return self.config.subtract_b_dec or self.is_transcoder

    @override
    def encode(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        check_rows(x, self.d_in)
        return largest_of_all(self.affine_encoder(), x, self.config.k, abs_top_k)

    def codes_from(self, pre_acts: Float[Tensor, "batch d_sae"]) -> SparseCodes:
        """The codes that `encode` makes of rows with these pre-activations."""
        return abs_top_k(pre_acts, self.config.k)

    @override
    def training_pass(self, batch: ActivationBatch, context: LossContext) -> TrainingPass:
        pre_acts, codes = self.choose(batch.x, lambda a: self.kept(abs_top_k, a, self.config.k))
        return self.selected_pass(batch, pre_acts, codes, context, abs_top_k)

    @override
    def fused_rule(self) -> FusedRule:
        return self.selected_rule(self.config.k, signed=True)

    @override
    def foreign_rule(self) -> dict[str, Any]:
        return {"k": self.config.k, "signed": True}


class BatchAbsTopK(AbstractBatchSelectionSAE[AbsTopKConfig]):
    """z = the batch's entries of largest magnitude; |a| above one threshold at inference."""

    def __init__(
        self, config: AbsTopKConfig, d_in: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(d_in, config.d_sae, config.k, generator)
        self.config = config

    @property
    @override
    def centres(self) -> bool:
        return self.config.subtract_b_dec or self.is_transcoder

    @override
    def training_pass(self, batch: ActivationBatch, context: LossContext) -> TrainingPass:
        pre_acts, codes = self.choose(batch.x, lambda a: self.kept(SIGNED, a, self.k))
        return self.selected_pass(batch, pre_acts, codes, context, abs_top_k)

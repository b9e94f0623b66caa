"""HierarchicalTopK: one SAE for every budget up to k (arXiv 2505.24473)."""

from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from saelab.config import UsageError
from saelab.kernels import nested_errors
from saelab.kernels.rules import FusedRule
from saelab.pursuit.select import top_k
from saelab.sae.aux_k import AuxKConfig
from saelab.sae.checks import check_k, check_rows
from saelab.sae.context import LossContext
from saelab.sae.in_blocks import largest_of_all
from saelab.sae.sparsity import Sparsity
from saelab.sae.unit_norm import AbstractUnitNormSAE
from saelab.types import ActivationBatch, SparseCodes, TrainingPass


class HierarchicalTopKConfig(AuxKConfig):
    """HierarchicalTopK: TopK that also reconstructs at every smaller budget (arXiv 2505.24473)."""

    variant: Literal["hierarchical-topk"] = "hierarchical-topk"
    k: int = Field(default=32, gt=0)
    """Largest budget. The trained SAE works at every budget up to it (`encode(x, budget=8)`)."""
    budgets: tuple[int, ...] = ()
    """Budgets whose errors the loss averages, ascending, ending with k; default: 1, 2, ..., k."""

    @property
    @override
    def sparsity(self) -> Sparsity:
        return Sparsity("row", self.k)

    @override
    def check(self) -> None:
        check_k(self.k, self.d_sae)
        rising = all(a < b for a, b in pairwise((0, *self.budgets)))
        if self.budgets and (not rising or self.budgets[-1] != self.k):
            raise UsageError(
                f"budgets={self.budgets} must be positive, rise, and end with k={self.k}."
            )

    @override
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "HierarchicalTopK":
        self.check()
        return HierarchicalTopK(self, d_in, generator)

    @property
    @override
    def several_reconstructions(self) -> str | None:
        return "HierarchicalTopK compares a reconstruction per budget"


class HierarchicalTopK(AbstractUnitNormSAE[HierarchicalTopKConfig]):
    """The error is the mean, over budgets j, of the error with the j largest latents."""

    def __init__(
        self, config: HierarchicalTopKConfig, d_in: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(d_in, config.d_sae, generator)
        self.config = config

    @override
    def encode(self, x: Float[Tensor, "batch d_in"], budget: int | None = None) -> SparseCodes:
        """The `budget` largest latents of each row; None means k.

        Raises:
            UsageError: the budget is not in 1 to k.
        """
        check_rows(x, self.d_in)
        k = self.config.k if budget is None else budget
        if not 1 <= k <= self.config.k:
            raise UsageError(f"budget={k} is outside 1 to k={self.config.k}, which was trained.")
        return largest_of_all(self.affine_encoder(), x, k)

    def codes_from(self, pre_acts: Float[Tensor, "batch d_sae"]) -> SparseCodes:
        """The codes that `encode` makes of rows with these pre-activations."""
        return top_k(pre_acts, self.config.k)

    @override
    def training_pass(self, batch: ActivationBatch, context: LossContext) -> TrainingPass:
        pre_acts, codes = self.choose(batch.x, lambda a: top_k(a, self.config.k))
        done = self.selected_pass(batch, pre_acts, codes, context, top_k)
        budgets = self.config.budgets or None
        wanted, bias = batch.wanted, self.b_dec
        if self.W_skip is not None:
            wanted, bias = wanted - self.offset(batch.x), torch.zeros_like(bias)
        errors = nested_errors(wanted, codes.values, codes.indices, self.W_dec, bias, budgets)
        return replace(done, error=errors.mean())

    @override
    def fused_rule(self) -> FusedRule:
        k = self.config.k
        budgets = self.config.budgets or tuple(range(1, k + 1))
        n = len(budgets)
        return self.selected_rule(k, groups=n, share=1 / n, budgets=budgets)

    @override
    def foreign_rule(self) -> dict[str, Any]:
        return {"k": self.config.k}

"""Matryoshka SAE: every prefix of the latents must reconstruct by itself (arXiv 2503.17547)."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from saelab.config import UsageError
from saelab.kernels.rules import FusedRule, StepValues
from saelab.pursuit.select import batch_top_k, below, top_k
from saelab.sae.aux_k import AuxKConfig
from saelab.sae.batch_selection import AbstractBatchSelectionSAE
from saelab.sae.checks import check_k
from saelab.sae.context import LossContext
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.losses import squared_error
from saelab.sae.sparsity import Sparsity
from saelab.types import ActivationBatch, SparseCodes, TrainingPass


class MatryoshkaConfig(AuxKConfig):
    """Matryoshka: a BatchTopK code whose prefixes must reconstruct too (arXiv 2503.17547)."""

    variant: Literal["matryoshka"] = "matryoshka"
    k: float | int = Field(default=32, gt=0)
    """Latents active per token on average, counted over all groups (paper: 20 to 640)."""
    fractions: tuple[float, ...] = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)
    """Share of the latents in each group; prefix i is groups 1 to i. Shares sum to 1 (default: that
    of the paper's code)."""
    random_prefixes: int = Field(default=0, ge=0)
    """Number of prefix lengths to draw anew at every step, instead of fixed groups. Short ones are
    drawn more often, and the last is always d_sae (Nabeshima's form, with 10); 0: fixed groups."""
    prefix_loss: Literal["mean", "sum"] = "mean"
    """How the prefixes' errors are combined. With `sum` AuxK counts less, by the number of
    prefixes."""

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
    def of_foreign(cls, foreign: ForeignSAE) -> "MatryoshkaConfig | None":
        k, prefixes = foreign.batch_k, foreign.prefixes
        if k is None or prefixes is None or not foreign.has_one_threshold:
            return None
        sizes = torch.tensor([b - a for a, b in pairwise((0, *prefixes))])
        fractions = tuple((sizes.double() / foreign.d_sae).tolist())
        return cls(d_sae=foreign.d_sae, k=k, fractions=fractions)

    @override
    def check(self) -> None:
        check_k(self.k, self.d_sae)
        if not self.random_prefixes:
            group_prefixes(self.fractions, self.d_sae)
        elif self.random_prefixes > self.d_sae:
            raise UsageError(
                f"random_prefixes={self.random_prefixes} exceeds d_sae={self.d_sae}; draw fewer."
            )

    @override
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "Matryoshka":
        self.check()
        return Matryoshka(self, d_in, generator)

    @property
    @override
    def several_reconstructions(self) -> str | None:
        return "a Matryoshka SAE compares several reconstructions"


class Matryoshka(AbstractBatchSelectionSAE[MatryoshkaConfig]):
    """The error is that of all prefixes q together: x_hat_q = z[:q] @ W_dec[:q] + b_dec."""

    def __init__(
        self, config: MatryoshkaConfig, d_in: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(d_in, config.d_sae, config.k, generator)
        self.config = config

    @override
    def training_pass(self, batch: ActivationBatch, context: LossContext) -> TrainingPass:
        pre_acts, codes = self.choose(batch.x, lambda a: self.kept(batch_top_k, a, self.k))
        done = self.selected_pass(batch, pre_acts, codes, context, top_k)
        errors = self.prefix_errors(batch, codes, self.prefixes(context))
        error = errors.mean() if self.config.prefix_loss == "mean" else errors.sum()
        return replace(done, error=error)

    def prefix_errors(
        self, batch: ActivationBatch, codes: SparseCodes, prefixes: Sequence[int]
    ) -> Float[Tensor, " prefix"]:
        """The squared error of each prefix, summed over d_in, mean over the batch.

        Each group of latents is decoded once and added to the previous prefix.
        """
        wanted = batch.wanted
        x_hat, errors = self.offset(batch.x).expand_as(wanted), []
        if self.shard is not None:
            prefixes = [self.shard.count(prefix) for prefix in prefixes]
        for start, stop in pairwise((0, *prefixes)):
            x_hat = x_hat + self.written(below(codes, stop, start))
            errors.append(squared_error(wanted, x_hat))
        return torch.stack(errors)

    def prefixes(self, context: LossContext) -> tuple[int, ...]:
        """The prefix lengths of a training step, ascending; the last is d_sae."""
        if self.config.random_prefixes:
            drawn = self.config.random_prefixes
            return sample_prefixes(self.config.d_sae, drawn, context.generator())
        return group_prefixes(self.config.fractions, self.config.d_sae)

    @override
    def fused_rule(self) -> FusedRule:
        n = self.config.random_prefixes or len(self.config.fractions)
        share = 1 / n if self.config.prefix_loss == "mean" else 1.0
        return replace(self._batch_rule(), groups=n, share=share)

    @override
    def step_values(self, context: LossContext) -> StepValues:
        return StepValues(prefixes=self.prefixes(context))

    @override
    def foreign_rule(self) -> dict[str, Any]:
        rule = super().foreign_rule() or {}
        if not self.config.random_prefixes:
            rule["prefixes"] = group_prefixes(self.config.fractions, self.d_sae)
        return rule


def group_prefixes(fractions: Sequence[float], d_sae: int) -> tuple[int, ...]:
    """Prefix lengths of groups with these shares; rounding goes to the last group.

    Raises:
        UsageError: a share is not positive, they do not sum to 1, or a group would be empty.
    """
    if min(fractions, default=0.0) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UsageError(f"fractions={tuple(fractions)} must be positive and sum to 1.")
    # 0.29 * 100 is below 29 in floating point.
    groups = [int(share * d_sae + 1e-6) for share in fractions[:-1]]
    groups.append(d_sae - sum(groups))
    if min(groups) < 1:
        raise UsageError(
            f"With d_sae={d_sae} a Matryoshka group of fractions={tuple(fractions)} would be "
            "empty; widen the SAE or use fewer groups."
        )
    return tuple(accumulate(groups))


def sample_prefixes(d_sae: int, n: int, generator: torch.Generator) -> tuple[int, ...]:
    """`n` prefix lengths, ascending, the last d_sae; P(length = t + 1) ~ sqrt(t + 1) - sqrt(t)."""
    if n == 1:
        return (d_sae,)
    edges = torch.arange(d_sae, dtype=torch.float64).sqrt()
    drawn = torch.multinomial(edges.diff(), n - 1, generator=generator) + 1
    return (*drawn.sort().values.tolist(), d_sae)

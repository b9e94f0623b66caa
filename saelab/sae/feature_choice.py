"""Feature Choice SAE: each latent chooses its tokens, as many as its rank allows (2411.02124)."""

import math
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from saelab.config import UsageError
from saelab.kernels.rules import FusedRule, StepValues
from saelab.kernels.torch.threshold import follow_smallest_of_each_
from saelab.kernels.torch.zipf import zipf_budgets
from saelab.pursuit.select import batch_top_k, column_top_k, top_k
from saelab.sae.base import AbstractSAE
from saelab.sae.context import LossContext
from saelab.sae.dictionary import move_norms
from saelab.sae.zipf import AbstractZipfSAE, ZipfConfig
from saelab.types import ActivationBatch, SparseCodes, TrainingPass


class FeatureChoiceConfig(ZipfConfig):
    """Feature Choice: each latent's largest pre-activations, by a budget (arXiv 2411.02124)."""

    variant: Literal["feature-choice"] = "feature-choice"
    mutual_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the run that is Mutual Choice, after which latents keep the ranks that they have by
    density; 0 for a run that starts from a trained SAE. That Mutual Choice comes first is the
    paper's, the share is a choice of saelab."""

    @override
    def check_batch(self, batch_size: int) -> None:
        if int(self.k * batch_size) < self.d_sae:
            raise UsageError(
                f"Feature Choice lets each of d_sae={self.d_sae} latents fire at least once in a "
                f"batch, and k={self.k} per token of batch_size={batch_size} allows "
                f"{int(self.k * batch_size)} firings; take --batch-size "
                f"{math.ceil(self.d_sae / self.k)} or more."
            )

    @override
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "FeatureChoice":
        self.check()
        return FeatureChoice(self, d_in, generator)


class FeatureChoice(AbstractZipfSAE[FeatureChoiceConfig]):
    """z = ReLU of the m_j largest pre-activations of each latent j over the batch.

    The budgets m_j fall with the latent's rank r by density: about batch * k * p_r, where p_r is
    proportional to (r + shift)^-exponent, at least 1 and at most the batch, in total k * batch.
    Ranks are those of a running mean, so they are stable. A latent with fewer positive
    pre-activations fires less often.
    The constants of the paper's law, fitted to a Mutual Choice SAE, are not public; `saelab
    evaluate` fits one to any SAE.

    A latent's rank decides how often it fires, so a rank that it does not deserve stays with it.
    Training therefore begins as Mutual Choice, in which densities are free.

    `choose_by_latent` is the paper's rule, which needs a whole batch. `encode` does not depend on
    the batch: latent j fires above its own threshold (our inference; the paper's rule for single
    tokens is not known to us). In training this is a running mean of the smallest value kept;
    `calibrate` multiplies all thresholds by the one factor that makes the mean L0 of held-out rows
    k. They are saved with the SAE.

    Attributes:
        threshold: `[d_sae]`, NaN for a latent that has never fired, which does not fire either.
    """

    def __init__(
        self, config: FeatureChoiceConfig, d_in: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, d_in, generator)
        self.register_buffer("threshold", torch.full((config.d_sae,), torch.nan))

    def choose_by_latent(self, pre_acts: Float[Tensor, "batch d_sae"]) -> SparseCodes:
        """The codes of a batch by the training rule; they depend on the whole batch."""
        budgets = zipf_budgets(self.d_sae, self.config.usage_rules(), len(pre_acts))
        return column_top_k(pre_acts, self.usage.ranked(), budgets)

    @override
    def training_pass(self, batch: ActivationBatch, context: LossContext) -> TrainingPass:
        by_latent = self.step_values(context).by_column
        select = self.choose_by_latent if by_latent else partial(batch_top_k, k=self.k)
        pre_acts, codes = self.choose(batch.x, select)
        return self.selected_pass(batch, pre_acts, codes, context, top_k)

    @override
    def follow(self, codes: SparseCodes) -> None:
        follow_smallest_of_each_(self.threshold, codes.values, codes.indices)

    @override
    @torch.no_grad()
    def calibrate(self, rows: Float[Tensor, "n d_in"]) -> None:
        if bool(self.threshold.isnan().all()):
            self.threshold.fill_(1.0)
        before = self.threshold.clone()
        super().calibrate(rows)
        self.threshold.mul_(before)

    @override
    def sizes(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        return (super().sizes(x) / self.threshold).nan_to_num(nan=0.0)

    @override
    @torch.no_grad()
    def take_threshold(self, source: AbstractSAE, rows: Float[Tensor, "n d_in"]) -> None:
        super().take_threshold(source, rows)
        known = source.state_dict().get("threshold")
        if known is not None:
            self.threshold.copy_(known)

    @override
    @torch.no_grad()
    def restore_norms(self) -> None:
        move_norms(self.W_dec, self.W_enc, self.b_enc, self.threshold)

    @override
    def fused_rule(self) -> FusedRule:
        return replace(super().fused_rule(), by_column=True)

    @override
    def step_values(self, context: LossContext) -> StepValues:
        return StepValues(by_column=context.progress >= self.config.mutual_share)

    @override
    def foreign_rule(self) -> dict[str, Any]:
        return {"threshold": self.threshold}

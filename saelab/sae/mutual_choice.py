"""Mutual Choice SAE: the batch's largest affinities, with aux_zipf (arXiv 2411.02124)."""

from typing import Literal

import torch
from typing_extensions import override

from saelab.pursuit.select import batch_top_k, top_k
from saelab.sae.context import LossContext
from saelab.sae.zipf import AbstractZipfSAE, ZipfConfig
from saelab.types import ActivationBatch, TrainingPass


class MutualChoiceConfig(ZipfConfig):
    """Mutual Choice: the batch's largest pre-activations, with aux_zipf (arXiv 2411.02124)."""

    variant: Literal["mutual-choice"] = "mutual-choice"

    @override
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "MutualChoice":
        self.check()
        return MutualChoice(self, d_in, generator)


class MutualChoice(AbstractZipfSAE[MutualChoiceConfig]):
    """z = ReLU of the batch * k largest token-latent affinities, which are pre-activations.

    Budget M = k * batch for all pairs of a token and a latent, with no limit for either. The
    selection is BatchTopK's; aux_zipf is what is new (see `saelab.sae.zipf`). The paper's choice is
    `choose` with any batch of tokens; what it does with a single token is not known to us.
    `encode` does not depend on the batch: it keeps what exceeds one threshold, which is saved with
    the SAE and calibrated so that the mean L0 is k.
    """

    @override
    def training_pass(self, batch: ActivationBatch, context: LossContext) -> TrainingPass:
        pre_acts, codes = self.choose(batch.x, lambda a: batch_top_k(a, self.k))
        return self.selected_pass(batch, pre_acts, codes, context, top_k)

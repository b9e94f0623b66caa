"""Steps of SAEs whose variant brings its own, because no gradient fits it."""

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.sae.base import AbstractSAE
from saelab.sae.context import LossContext
from saelab.training.average import WeightAverage, with_mean_weights
from saelab.training.checkpoint import DamagedCheckpointError
from saelab.training.config import TrainConfig
from saelab.training.dead import DeadLatents
from saelab.training.objectives import Objective
from saelab.training.source import Batch
from saelab.training.spread import Spread
from saelab.training.step_parts import (
    Measure,
    StepResult,
    ignore,
    load_module,
    module_tensors,
)
from saelab.types import ActivationBatch


class OwnSteps:
    """An SAE whose variant does its own step, with its dead latents; see `Steps`."""

    name = "own"
    spread: Spread | None = None
    uses_rate = False
    dtype = torch.float32

    def __init__(self, config: TrainConfig, sae: AbstractSAE, device: torch.device) -> None:
        step = sae.to(device).own_step()
        assert step is not None
        self.sae, self.step = sae, step
        self.dead = DeadLatents(config.sae.d_sae, config.silence, device)
        self.average = WeightAverage.of(config.ema, dict(sae.named_parameters()))
        self.measure: Measure = ignore

    def optimizer_step(
        self, batch: Batch, objective: Objective, context: LossContext, *, lr: float, scale: float
    ) -> StepResult:
        """See `Steps.optimizer_step`; there is no optimizer, and `lr` is not used."""
        assert isinstance(batch, ActivationBatch)
        x = batch.x * scale
        terms = self.step(replace(batch, x=x), replace(context, dead=self.dead.mask()))
        self.dead.update(terms.codes)
        self.sae.observe(terms.codes)
        if self.average is not None:
            self.average.update(dict(self.sae.named_parameters()), context.step + 1)
        done = StepResult(x, terms, None)
        self.measure(done)
        return done

    def n_dead(self) -> Int[Tensor, ""]:
        """See `Steps.n_dead`."""
        return self.dead.dead.sum()

    def tensors(self) -> dict[str, Tensor]:
        """See `Steps.tensors`."""
        return self.step.tensors() | module_tensors(self.sae, self.dead, self.average)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """See `Steps.load`."""
        load_module(tensors, self.sae, self.dead, self.average)
        self.step.load(tensors)

    def alone(self) -> Spread:
        """See `Steps.alone`.

        Raises:
            DamagedCheckpointError: always, since several processes cannot train these SAEs.
        """
        raise DamagedCheckpointError("it is in parts, which no training of this variant writes")

    def trained(self) -> AbstractSAE:
        """See `Steps.trained`."""
        return self.sae

    def averaged(self) -> AbstractSAE:
        """See `Steps.averaged`."""
        assert self.average is not None
        return with_mean_weights(self.sae, self.average.means)

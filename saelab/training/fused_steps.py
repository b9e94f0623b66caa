"""SAEs trained by the fused step, as one kind of `Steps`."""

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.sae.base import AbstractSAE
from saelab.sae.context import LossContext
from saelab.shard import LatentShard, replicas_of
from saelab.training.average import WeightAverage, with_mean_weights
from saelab.training.config import TrainConfig
from saelab.training.objectives import Objective
from saelab.training.source import Batch
from saelab.training.spread import Spread
from saelab.training.step_parts import Measure, StepResult, ignore
from saelab.types import ActivationBatch, LossTerms


class FusedSteps:
    """SAEs whose variant has a fused rule, trained by kernels alone, as CUDA graphs."""

    name = "fused"
    uses_rate = True

    def __init__(
        self,
        config: TrainConfig,
        sae: AbstractSAE,
        device: torch.device,
        total_variance: float,
    ) -> None:
        from saelab.kernels.triton.step.rules import AdamRules
        from saelab.training.fused import FusedOptions, FusedStep

        self.dtype: torch.dtype = getattr(torch, config.precision)
        # The module stays on its device: its weights would take device memory twice.
        options = FusedOptions(
            config.batch_size // replicas_of(sae.shard).count,
            total_variance,
            self.dtype,
            config.silence,
            config.clip_norm,
            ties=config.ties,
            adam=AdamRules(
                (config.adam_beta1, config.adam_beta2),
                config.adam_eps,
                config.weight_decay,
                getattr(torch, config.moments),
                config.seed,
            ),
        )
        self.step = FusedStep(sae, options, device)
        self.spread = None if sae.shard is None else Spread(sae, sae.shard)
        self._dead_after = config.silence
        self.average = WeightAverage.of(config.ema, self._weights())
        self.measure: Measure = ignore

    def optimizer_step(
        self, batch: Batch, objective: Objective, context: LossContext, *, lr: float, scale: float
    ) -> StepResult:
        """See `Steps.optimizer_step`."""
        assert isinstance(batch, ActivationBatch)
        step = self.step
        step.set_lr(lr)
        step.prepare(context)

        def result() -> StepResult:
            done = self._result(context.total_variance)
            self.measure(done)
            return done

        rows = batch.x, scale, batch.grad, batch.target
        # What several processes tell each other about a result does not belong into a graph.
        done = step(*rows, after=result if self.spread is None else None)
        if self.average is not None:
            self.average.update(self._weights(), context.step + 1, step.weights.scale)
        return result() if done is None else done

    def _result(self, total_variance: float) -> StepResult:
        """The result of the last step."""
        step = self.step
        total, parts = step.error / total_variance, {}
        for name, (weight, penalty) in step.penalties.items():
            parts[name] = penalty
            total = total + weight * penalty
        if step.rules.sae.wider:
            parts["multi_k"] = step.wider_error / total_variance
        terms = LossTerms(total, step.mse_sum, step.codes, parts)
        clips = step.rules.clip_norm is not None
        return StepResult(step.target, terms, step.gradient_norm if clips else None)

    def n_dead(self) -> Int[Tensor, ""]:
        """See `Steps.n_dead`."""
        return (self.step.since_fired >= self._dead_after).sum()

    def tensors(self) -> dict[str, Tensor]:
        """See `Steps.tensors`."""
        return self.step.tensors() | (self.average.tensors() if self.average else {})

    def load(self, tensors: dict[str, Tensor]) -> None:
        """See `Steps.load`."""
        self.step.load(tensors)
        if self.average is not None:
            self.average.load(tensors)

    def alone(self) -> Spread:
        """See `Steps.alone`."""
        return Spread(self.step.sae, LatentShard(0, 1, self.step.sae.d_sae))

    def trained(self) -> AbstractSAE:
        """See `Steps.trained`."""
        self.step.write_back()
        return self.step.sae

    def averaged(self) -> AbstractSAE:
        """See `Steps.averaged`."""
        assert self.average is not None
        means = dict(self.average.means)
        if "W_enc" in means:
            means["W_enc"] = means["W_enc"].T
        return with_mean_weights(self.trained(), means)

    def _weights(self) -> dict[str, Tensor]:
        """The weights by the SAE's names; W_enc is transposed, W_dec's rows are not yet scaled."""
        w = self.step.weights
        out = {"W_dec": w.dec, "W_enc": w.enc, "b_enc": w.b_enc, "b_dec": w.b_dec}
        out |= {"threshold": w.thresholds, "b_in": w.b_in, "W_skip": w.W_skip}
        own = dict(self.step.sae.named_parameters())
        return {name: p.value for name, p in out.items() if p is not None and name in own}

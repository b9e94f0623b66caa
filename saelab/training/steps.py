"""Two kinds of optimizer step: autograd for everything, kernels alone where possible."""

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.config import UsageError
from saelab.kernels.cuda import has_triton
from saelab.sae.base import AbstractSAE
from saelab.sae.context import LossContext
from saelab.training.average import WeightAverage, with_mean_weights
from saelab.training.checkpoint import optimizer_tensors, restore_optimizer
from saelab.training.config import TrainConfig
from saelab.training.dead import DeadLatents
from saelab.training.objectives import Objective
from saelab.training.source import Batch
from saelab.training.spread import Spread
from saelab.types import ActivationBatch, LossTerms


@dataclass(frozen=True)
class StepResult:
    """Result of one step.

    Attributes:
        x: the rows that the SAE reconstructs.
        terms: its loss terms; the codes are valid until the next step.
        gradient_norm: before clipping; None if nothing needed it.
        n_active: active latents of all rows.
    """

    x: Float[Tensor, "batch d_in"]
    terms: LossTerms
    gradient_norm: Float[Tensor, ""] | None
    n_active: Int[Tensor, ""]


@runtime_checkable
class Steps(Protocol):
    """An SAE in training, with its optimizer and its dead latents.

    Attributes:
        name: the kind of step, for the record.
        average: average of the weights so far, if asked for.
    """

    name: str
    average: WeightAverage | None

    def optimizer_step(
        self, batch: Batch, objective: Objective, context: LossContext, *, lr: float, scale: float
    ) -> StepResult:
        """Do one optimizer step on activations times `scale`; `context.dead` need not be set."""
        ...

    def n_dead(self) -> int:
        """How many latents are dead."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name.

        Where several processes hold the SAE, all call this; the first gets whole tensors, the
        others nothing.
        """
        ...

    def expected(self) -> Mapping[str, Tensor]:
        """Tensors of the names, shapes and types of `tensors`."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Continue from these `tensors`."""
        ...

    def trained(self) -> AbstractSAE:
        """The SAE with its current weights, or this process's shard of it."""
        ...

    def whole(self) -> AbstractSAE | None:
        """The whole SAE; None in all but the first of several processes, which all call this."""
        ...

    def averaged(self) -> AbstractSAE | None:
        """A copy of the SAE with averaged weights; atoms are made unit if training keeps them unit.

        Only parameters are averaged; other state is as it is now. Processes: see `whole`.
        """
        ...


class AutogradSteps:
    """Any SAE and objective: torch differentiates, and torch's Adam updates the weights."""

    name = "autograd"

    def __init__(self, config: TrainConfig, sae: AbstractSAE, device: torch.device) -> None:
        self.config = config
        self.sae = sae.to(device)
        self.optimizer = torch.optim.AdamW(
            _decaying(sae, config.weight_decay),
            lr=0.0,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_eps,
            weight_decay=0.0,
            fused=device.type == "cuda",
        )
        self.spread = sae.shard and Spread(sae, sae.shard, self.optimizer)
        self.dead = DeadLatents(sae.d_sae, config.silence, device)
        self.average = WeightAverage.of(config.ema, dict(sae.named_parameters()))

    def optimizer_step(
        self, batch: Batch, objective: Objective, context: LossContext, *, lr: float, scale: float
    ) -> StepResult:
        """See `Steps.optimizer_step`.

        The order matters: the gradient's radial part is removed before Adam, and atoms are
        renormalised after Adam.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        device = self.dead.since_fired.device.type
        half = self.config.precision == "bfloat16"
        context = replace(context, dead=self.dead.mask(self.sae.shard))
        self.optimizer.zero_grad(set_to_none=True)
        with nullcontext() if self.spread is None else self.spread.backward():
            with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
                x, terms = objective.loss(self.sae, batch, context, scale)
            terms.total.backward()
        self.dead.update(terms.codes)
        self.sae.observe(terms.codes)
        self.sae.before_optimizer_step()
        limit = float("inf") if self.config.clip_norm is None else self.config.clip_norm
        if self.spread is None:
            norm = torch.nn.utils.clip_grad_norm_(self.sae.parameters(), limit)
        else:
            norm = self.spread.clip(limit)
        self.optimizer.step()
        self.sae.after_optimizer_step()
        if self.average is not None:
            self.average.update(dict(self.sae.named_parameters()), context.step + 1)
        return StepResult(x, terms, norm, self._in_all(terms.codes.active))

    def n_dead(self) -> int:
        """See `Steps.n_dead`."""
        return int(self._in_all(self.dead.dead))

    def _in_all(self, marks: Tensor) -> Tensor:
        shard, n = self.sae.shard, marks.sum()
        return n if shard is None else shard.sum_all(n)

    def tensors(self) -> dict[str, Tensor]:
        """See `Steps.tensors`."""
        return self._own() if self.spread is None else self.spread.whole(self._own())

    def expected(self) -> Mapping[str, Tensor]:
        """See `Steps.expected`."""
        return self._own() if self.spread is None else self.spread.expected(self._own())

    def _own(self) -> dict[str, Tensor]:
        tensors = {f"sae.{name}": value for name, value in self.sae.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizer) | {"since_fired": self.dead.since_fired}
        return tensors | (self.average.tensors() if self.average else {})

    def load(self, tensors: dict[str, Tensor]) -> None:
        """See `Steps.load`."""
        if self.spread is not None:
            tensors = self.spread.own(tensors, self.dead.since_fired.device)
        prefix = "sae."
        weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        self.sae.load_state_dict(weights)
        restore_optimizer(self.optimizer, tensors)
        self.dead.since_fired = tensors["since_fired"]
        if self.average is not None:
            self.average.load(tensors)

    def trained(self) -> AbstractSAE:
        """See `Steps.trained`."""
        return self.sae

    def whole(self) -> AbstractSAE | None:
        """See `Steps.whole`."""
        return self.sae if self.spread is None else self.spread.sae()

    def averaged(self) -> AbstractSAE | None:
        """See `Steps.averaged`."""
        assert self.average is not None
        if self.spread is not None:
            return self.spread.sae(self.average.means)
        return with_mean_weights(self.sae, self.average.means)


def _decaying(sae: AbstractSAE, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: matrices decay, vectors do not."""
    parameters = list(sae.parameters())
    if not weight_decay:
        return [{"params": parameters}]
    matrices, vectors = ([p for p in parameters if (p.ndim > 1) is kind] for kind in (True, False))
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors}]


class FusedSteps:
    """SAEs whose variant has a fused rule, trained by kernels alone, as CUDA graphs."""

    name = "fused"

    def __init__(
        self,
        config: TrainConfig,
        sae: AbstractSAE,
        device: torch.device,
        total_variance: float,
    ) -> None:
        from saelab.kernels.triton.step.rules import AdamRules
        from saelab.training.fused import FusedOptions, FusedStep

        # The module stays on its device: its weights would take device memory twice.
        options = FusedOptions(
            config.batch_size,
            total_variance,
            getattr(torch, config.precision),
            config.silence,
            config.clip_norm,
            ties=config.ties,
            adam=AdamRules(
                (config.adam_beta1, config.adam_beta2), config.adam_eps, config.weight_decay
            ),
        )
        self.step = FusedStep(sae, options, device)
        self._dead_after = config.silence
        self.average = WeightAverage.of(config.ema, self._weights())

    def optimizer_step(
        self, batch: Batch, objective: Objective, context: LossContext, *, lr: float, scale: float
    ) -> StepResult:
        """See `Steps.optimizer_step`."""
        assert isinstance(batch, ActivationBatch)
        step = self.step
        step.set_lr(lr)
        step.prepare(context)
        step(batch.x, scale, batch.grad)
        if self.average is not None:
            self.average.update(self._weights(), context.step + 1, step.weights.scale)
        total, parts = step.error / context.total_variance, {}
        for name, (weight, penalty) in step.penalties.items():
            parts[name] = penalty
            total = total + weight * penalty
        if step.rules.sae.wider:
            parts["multi_k"] = step.wider_error / context.total_variance
        terms = LossTerms(total, step.mse_sum, step.codes, parts)
        clips = step.rules.clip_norm is not None
        norm = step.gradient_norm if clips else None
        return StepResult(step.x, terms, norm, step.codes.active.sum())

    def n_dead(self) -> int:
        """See `Steps.n_dead`."""
        return int((self.step.since_fired >= self._dead_after).sum())

    def tensors(self) -> dict[str, Tensor]:
        """See `Steps.tensors`."""
        return self.step.tensors() | (self.average.tensors() if self.average else {})

    def expected(self) -> Mapping[str, Tensor]:
        """See `Steps.expected`."""
        return self.tensors()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """See `Steps.load`."""
        self.step.load(tensors)
        if self.average is not None:
            self.average.load(tensors)

    def trained(self) -> AbstractSAE:
        """See `Steps.trained`."""
        self.step.write_back()
        return self.step.sae

    def whole(self) -> AbstractSAE:
        """See `Steps.whole`."""
        return self.trained()

    def averaged(self) -> AbstractSAE:
        """See `Steps.averaged`."""
        assert self.average is not None
        means = self.average.means
        return with_mean_weights(self.trained(), {**means, "W_enc": means["W_enc"].T})

    def _weights(self) -> dict[str, Tensor]:
        """The weights by the SAE's names; W_enc is transposed, W_dec's rows are not yet scaled."""
        w = self.step.weights
        out = {"W_dec": w.dec, "W_enc": w.enc, "b_enc": w.b_enc, "b_dec": w.b_dec}
        if w.thresholds is not None:
            out["threshold"] = w.thresholds
        return {name: parameter.value for name, parameter in out.items()}


def choose_steps(
    config: TrainConfig, sae: AbstractSAE, device: torch.device, total_variance: float
) -> AutogradSteps | FusedSteps:
    """The fused step if it exists and is exact for this configuration, else autograd.

    Raises:
        UsageError: the fused step, or an option that only it has, was asked for, and there is none.
    """
    problem = "--step autograd was asked for" if config.step == "autograd" else None
    problem = problem or _problem(config, sae, device)
    if problem is None:
        return FusedSteps(config, sae, device, total_variance)
    if config.step == "fused":
        raise UsageError(f"--step fused cannot train this: {problem}; take --step auto.")
    if config.ties == "float32" and config.precision != "float32":
        raise UsageError(
            f"--ties float32 needs the fused step, and there is none: {problem}; leave it "
            "out, or take --precision float32, where nothing is rounded."
        )
    return AutogradSteps(config, sae, device)


def _problem(config: TrainConfig, sae: AbstractSAE, device: torch.device) -> str | None:
    """Why there is no fused step here, as half a sentence."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1" and config.step == "fused"
    if device.type != "cuda" and not interpreted:
        return f"it needs a CUDA device, and this is {device}"
    if not has_triton():
        return "it needs the triton package (pip install 'saelab[kernels]')"
    if config.objective != "local":
        return f"it knows the local objective alone, and this is {config.objective}"
    if sae.shard is not None:
        return "it trains in one process"
    from saelab.training.fused import fused_rule

    rule = fused_rule(sae)
    return rule if isinstance(rule, str) else None

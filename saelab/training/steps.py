"""Kinds of step: kernels alone where possible, autograd, or what a variant brings itself."""

import os
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.config import UsageError
from saelab.kernels.cuda import has_triton
from saelab.sae.base import AbstractSAE
from saelab.sae.context import LossContext
from saelab.shard import LatentShard, replicas_of
from saelab.training.average import WeightAverage, with_mean_weights
from saelab.training.checkpoint import optimizer_tensors, restore_optimizer
from saelab.training.config import TrainConfig
from saelab.training.dead import DeadLatents
from saelab.training.fused_steps import FusedSteps
from saelab.training.objectives import Objective
from saelab.training.own_steps import OwnSteps
from saelab.training.source import Batch
from saelab.training.spread import Spread
from saelab.training.step_parts import (
    Measure,
    StepResult,
    ignore,
    load_module,
    module_tensors,
)


@runtime_checkable
class Steps(Protocol):
    """An SAE in training, with its optimizer and its dead latents.

    Attributes:
        name: the kind of step, for the record.
        uses_rate: whether a learning rate matters.
        dtype: of the rows that it rounds to; it reads rows in it or in float32.
        average: average of the weights so far, if asked for.
        spread: the other processes' part in it; None for one process.
        measure: called with the result of each step. It never waits for the device and always adds
            to the same memory, since a fused step calls it once and repeats what it launched.
    """

    name: str
    uses_rate: bool
    dtype: torch.dtype
    average: WeightAverage | None
    spread: Spread | None
    measure: Measure

    def optimizer_step(
        self, batch: Batch, objective: Objective, context: LossContext, *, lr: float, scale: float
    ) -> StepResult:
        """Do one optimizer step on activations times `scale`; `context.dead` need not be set."""
        ...

    def n_dead(self) -> Int[Tensor, ""]:
        """How many latents are dead, of those that this process holds."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Continue from these `tensors`."""
        ...

    def alone(self) -> Spread:
        """Which tensors count latents, where this process holds all latents."""
        ...

    def trained(self) -> AbstractSAE:
        """The SAE with its current weights."""
        ...

    def averaged(self) -> AbstractSAE:
        """A copy of the SAE with averaged weights; atoms are made unit if training keeps them unit.

        Only parameters are averaged; other state is as it is now.
        """
        ...


class AutogradSteps:
    """Any SAE and objective: torch differentiates, and torch's Adam updates the weights."""

    name = "autograd"
    uses_rate = True
    dtype = torch.float32

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
        self.spread = None if sae.shard is None else Spread(sae, sae.shard, self.optimizer)
        self.dead = DeadLatents(sae.d_sae, config.silence, device)
        self.average = WeightAverage.of(config.ema, dict(sae.named_parameters()))
        self.measure: Measure = ignore

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
        with nullcontext() if self.spread is None else self.spread.gradients():
            with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
                x, terms = objective.loss(self.sae, batch, context, scale)
            terms.total.backward()
        self.dead.update(terms.codes, replicas_of(self.sae.shard))
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
        done = StepResult(x, terms, norm)
        self.measure(done)
        return done

    def n_dead(self) -> Int[Tensor, ""]:
        """See `Steps.n_dead`."""
        return self.dead.dead.sum()

    def tensors(self) -> dict[str, Tensor]:
        """See `Steps.tensors`."""
        held = module_tensors(self.sae, self.dead, self.average)
        return held | optimizer_tensors(self.optimizer)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """See `Steps.load`."""
        load_module(tensors, self.sae, self.dead, self.average)
        restore_optimizer(self.optimizer, tensors)

    def alone(self) -> Spread:
        """See `Steps.alone`."""
        return Spread(self.sae, LatentShard(0, 1, self.sae.d_sae), self.optimizer)

    def trained(self) -> AbstractSAE:
        """See `Steps.trained`."""
        return self.sae

    def averaged(self) -> AbstractSAE:
        """See `Steps.averaged`."""
        assert self.average is not None
        return with_mean_weights(self.sae, self.average.means)


def _decaying(sae: AbstractSAE, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: matrices decay, vectors do not."""
    parameters = list(sae.parameters())
    if not weight_decay:
        return [{"params": parameters}]
    matrices, vectors = ([p for p in parameters if (p.ndim > 1) is kind] for kind in (True, False))
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors}]


def choose_steps(
    config: TrainConfig, sae: AbstractSAE, device: torch.device, total_variance: float
) -> AutogradSteps | FusedSteps | OwnSteps:
    """The variant's own step if it has one; the fused step where it is exact; else autograd.

    Raises:
        UsageError: the fused step, or an option that only it has, was asked for, and there is none.
    """
    if config.sae.fitted_by is not None:
        return OwnSteps(config, sae, device)
    problem = fused_problem(config, sae, device)
    if problem is None:
        return FusedSteps(config, sae, device, total_variance)
    _check_without(config, problem)
    return AutogradSteps(config, sae, device)


def check_asked(config: TrainConfig, device: torch.device) -> None:
    """Refuse what only a fused step has where no SAE has one; `choose_steps` knows the rest.

    Raises:
        UsageError: as for `choose_steps`.
    """
    problem = _problem_here(config, device)
    if config.sae.fitted_by is None and problem is not None:
        _check_without(config, problem)


def _check_without(config: TrainConfig, problem: str) -> None:
    if config.step == "fused":
        raise UsageError(f"--step fused cannot train this: {problem}; take --step auto.")
    if config.ties == "float32" and config.precision != "float32":
        raise UsageError(
            f"--ties float32 needs the fused step, and there is none: {problem}; leave it "
            "out, or take --precision float32, where nothing is rounded."
        )
    if config.moments != "float32":
        raise UsageError(
            f"--moments {config.moments} needs the fused step, and there is none: {problem}; leave "
            "it out."
        )


def fused_problem(config: TrainConfig, sae: AbstractSAE, device: torch.device) -> str | None:
    """Why there is no fused step here, as half a sentence."""
    if (problem := _problem_here(config, device)) is not None:
        return problem
    if sae.shard is not None and config.ties == "float32":
        return "--ties float32 is for one process"
    from saelab.training.fused import fused_rule

    rule = fused_rule(sae)
    return rule if isinstance(rule, str) else None


def _problem_here(config: TrainConfig, device: torch.device) -> str | None:
    """Why no SAE has a fused step on this device, by these options."""
    if config.step == "autograd":
        return "--step autograd was asked for"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1" and config.step == "fused"
    if device.type != "cuda" and not interpreted:
        return f"it needs a CUDA device, and this is {device}"
    if not has_triton():
        return "it needs the triton package (pip install 'saelab[kernels]')"
    if config.objective != "local":
        return f"it knows the local objective alone, and this is {config.objective}"
    return None

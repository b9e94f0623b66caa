"""What changes while an SAE trains, and one step of it."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.activations.statistics import ColumnSums
from saelab.config import UsageError
from saelab.sae.base import AbstractSAE, LossContext
from saelab.sae.start import start_from
from saelab.sae.transcoder import start_transcoder
from saelab.training.checkpoint import (
    FREE,
    PATHS,
    Checkpoint,
    CheckpointState,
    DamagedCheckpointError,
    Place,
    save_checkpoint,
    take_newest,
)
from saelab.training.config import TrainConfig
from saelab.training.metrics import Report
from saelab.training.objectives import Objective
from saelab.training.schedule import learning_rate
from saelab.training.source import Batch, Source
from saelab.training.steps import StepResult, Steps, choose_steps
from saelab.training.untrained import untrained_sae
from saelab.types import ActivationBatch


@dataclass
class TrainingState:
    """An SAE in training, and how far it has come.

    Attributes:
        steps: the SAE with its optimizer and its dead latents.
        device: where that is.
        total_variance: V of what is reconstructed, in the activations' own units.
        scale: what activations are multiplied by before the SAE reads them.
        target_scale: what is reconstructed is multiplied by; `scale`, but for transcoders.
        rise: at which step a run was made longer, and the rate before; None: it never was.
        checkpoint: the last one that was written or read, which is whole.
        report: what was reported until the checkpoint, if anybody says.
    """

    config: TrainConfig
    steps: Steps
    device: torch.device
    total_variance: float
    scale: float
    target_scale: float
    step: int = 0
    rise: tuple[int, float] | None = None
    checkpoint: Path | None = None
    report: Report | None = None

    @classmethod
    def start(
        cls,
        config: TrainConfig,
        source: Source,
        start_rows: Float[Tensor, "n d_in"],
        trained: AbstractSAE | None = None,
    ) -> "TrainingState":
        """The state before the first step, with the weights of `trained` if it is given.

        That is an SAE as it was saved: it reads raw activations. It is changed.

        Raises:
            UsageError: the options do not fit.
        """
        config.check()
        sae = untrained_sae(config, source.site.d_in, source.target.d_in)
        chosen = source.selection
        rows = start_rows * _scale(config, chosen.read)
        scale, target_scale = (_scale(config, sums) for sums in (chosen.read, chosen.written))
        if sae.is_transcoder:
            start_transcoder(sae, rows, source.start_targets * target_scale)
        # Also before trained weights: what a variant finds out of the rows is then the same when
        # the run is continued, from a checkpoint instead of these weights.
        sae.initialise(rows)
        if trained is not None:
            trained.rescale(1 / scale, 1 / target_scale)
            start_from(sae, trained, rows)
        variance = chosen.written.total_variance
        steps = choose_steps(config, sae, source.device, variance * target_scale**2)
        return cls(config, steps, source.device, variance, scale, target_scale)

    @property
    def target_variance(self) -> float:
        """V of what is reconstructed, scaled."""
        return self.total_variance * self.target_scale**2

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return self.step >= self.config.n_steps

    def rate(self, step: int) -> float:
        """The learning rate of step `step` (0-based).

        A run that was made longer goes over from the rate that it had to that of a run of its new
        length, linearly over as many steps as its warm-up has (arXiv 2403.08763: a rate that had
        fallen is warmed up again).
        """
        planned = learning_rate(self.config, step)
        if self.rise is None:
            return planned
        first, before = self.rise
        share = min(1.0, (step + 1 - first) / max(1, self.config.n_warmup))
        return before + share * (planned - before)

    def risen(self) -> str | None:
        """What the rate does in a run that has just been made longer, as a sentence."""
        if self.rise is None or self.rise[0] != self.step:
            return None
        size, (_, before) = self.config.batch_size, self.rise
        after = self.step + self.config.n_warmup
        then = learning_rate(self.config, min(after, self.config.n_steps - 1))
        return (
            f"the training goes on from {self.step * size:,} to {self.config.n_tokens:,} tokens; "
            f"its learning rate, {before:.3g} now, is that of a run of this length "
            f"({then:.3g}) {self.config.n_warmup} steps later."
        )

    def advance(self, batch: Batch, objective: Objective) -> StepResult:
        """One optimizer step."""
        if isinstance(batch, ActivationBatch) and batch.target is not None:
            batch = replace(batch, target=batch.target * self.target_scale)
        context = LossContext(
            self.target_variance, None, self.step, self.config.n_steps, self.config.seed
        )
        lr = self.rate(self.step)
        done = self.steps.advance(batch, objective, context, lr=lr, scale=self.scale)
        self.step += 1
        return done

    def finish(self, rows: Float[Tensor, "n d_in"]) -> AbstractSAE:
        """The SAE for activations in their own units, calibrated on these rows of them."""
        return self.in_own_units(self.steps.trained(), rows)

    def snapshot(self, rows: Float[Tensor, "n d_in"]) -> AbstractSAE:
        """What `finish` would give now; the training goes on as if it had not been asked."""
        return self.in_own_units(copy.deepcopy(self.steps.trained()), rows)

    def averaged(self, rows: Float[Tensor, "n d_in"]) -> AbstractSAE | None:
        """The SAE of the averaged weights as of now, if they are asked for; see `snapshot`."""
        if self.steps.average is None:
            return None
        return self.in_own_units(self.steps.averaged(), rows)

    def in_own_units(self, sae: AbstractSAE, rows: Float[Tensor, "n d_in"]) -> AbstractSAE:
        """Calibrate `sae`, which reads scaled activations, on raw rows, and make it read such.

        It is changed and returned.
        """
        sae.calibrate(rows.to(sae.W_dec.device) * self.scale)
        sae.rescale(self.scale, self.target_scale)
        return sae

    def save(self, directory: Path, place: Place) -> None:
        """Write a checkpoint of this step below `directory`; `place` is where the stream stands."""
        state = CheckpointState(
            step=self.step,
            batches=place,
            by=self.steps.name,
            options=self.config.model_dump(mode="json"),
            n_steps=self.config.n_steps,
            rate=self.rate(max(0, self.step - 1)),
            rise=self.rise,
            interval=self.report and self.report.interval,
        )
        log = self.report and self.report.log
        tensors = self.steps.tensors()
        self.checkpoint = save_checkpoint(directory, tensors, state, log, before=self.checkpoint)

    def restore(self, directory: Path, start: Place | None = None) -> Place | None:
        """Continue from the newest whole checkpoint below `directory`; None if there is none.

        Returns where the stream stood; `start` is where it begins.

        Raises:
            UsageError: the checkpoint is of the other way to do a step, or all are damaged.
        """
        return take_newest(directory, lambda found: self._take(found, directory, start))

    def _take(self, found: Checkpoint, directory: Path, start: Place | None) -> Place:
        state = found.state
        if state.by != self.steps.name:
            raise UsageError(
                f"{directory} was trained by the {state.by} step, which this device or "
                f"installation does not take ({self.steps.name}); continue where it was begun, or "
                "choose another --out."
            )
        options = self.config.model_dump(mode="json")
        decisive = [name for name in options if name not in FREE | PATHS]
        if other := [name for name in decisive if _differs(state.options, options, name)]:
            raise DamagedCheckpointError(
                f"{found.path} is of another run: {other[0]} is {state.options[other[0]]} there"
            )
        if state.step > self.config.n_steps or (start and not _alike(state.batches, start)):
            raise DamagedCheckpointError(f"{found.path} names no place in this training")
        tensors, log = found.tensors(self.device, self.steps.tensors())
        self.steps.load(tensors)
        self.step, self.checkpoint = state.step, found.path
        if state.interval is not None and log is not None:
            self.report = Report(log, state.interval)
        self.rise = state.rise
        if state.rate is not None and state.n_steps != self.config.n_steps:
            self.rise = (state.step, state.rate)
        return state.batches


def _scale(config: TrainConfig, sums: ColumnSums) -> float:
    """Unit variance per dimension, if asked for."""
    variance = sums.total_variance
    return (len(sums.sum) / variance) ** 0.5 if config.normalise and variance else 1.0


def _differs(there: dict[str, Any], here: dict[str, Any], name: str) -> bool:
    """Whether an option is another; one that there is not yet is not."""
    if name not in there:
        return False
    old, new = there[name], here[name]
    if isinstance(old, dict) and isinstance(new, dict):
        return any(_differs(old, new, inner) for inner in new)
    return old != new


def _alike(place: Place, start: Place) -> bool:
    """Whether a place in the stream has what such a place must have."""
    return all(type(place.get(name)) is type(value) for name, value in start.items()) and all(
        value >= 0 for value in place.values() if isinstance(value, int)
    )

"""The state of an SAE in training, and one step of it."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.activations.statistics import ColumnSums
from saelab.config import UsageError
from saelab.ranks import Ranks
from saelab.sae.base import AbstractSAE
from saelab.sae.context import LossContext
from saelab.sae.decoder import device_of
from saelab.sae.spread import keep_shard
from saelab.sae.start import start_from
from saelab.sae.transcoder import start_transcoder
from saelab.shard import ALONE, Replicas
from saelab.training.checkpoint import (
    FREE,
    PATHS,
    Checkpoint,
    CheckpointState,
    DamagedCheckpointError,
    Place,
    checkpoint_path,
    save_checkpoint,
    take_newest,
)
from saelab.training.config import TrainConfig
from saelab.training.held import read_held, write_held
from saelab.training.metrics import Report
from saelab.training.objectives import Objective
from saelab.training.schedule import learning_rate
from saelab.training.source import Batch, Source
from saelab.training.step_parts import as_read
from saelab.training.steps import StepResult, Steps, choose_steps
from saelab.training.together import Together
from saelab.training.untrained import untrained_sae


@dataclass
class TrainingState:
    """An SAE in training, with its progress.

    Attributes:
        steps: the SAE with its optimizer and its dead latents.
        device: device of the SAE and the optimizer.
        total_variance: V of the reconstructed site, in the activations' own units.
        scale: factor of the activations that the SAE reads.
        target_scale: factor of the activations that it reconstructs; differs from `scale` only for
            transcoders.
        rise: the step at which the run was made longer, and the learning rate before; None if it
            never was.
        checkpoint: the last checkpoint written or read, which is whole.
        report: the training's reports up to the checkpoint, if known.
        ranks: the processes that hold the SAE together.
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
    ranks: Ranks = Ranks()  # noqa: RUF009 - frozen

    @classmethod
    def start(
        cls,
        config: TrainConfig,
        source: Source,
        start_rows: Float[Tensor, "n d_in"],
        trained: AbstractSAE | None = None,
        holders: Together | None = None,
        *,
        sae: AbstractSAE | None = None,
    ) -> "TrainingState":
        """The state before the first step, from the weights of `trained` if it is given.

        `trained` is an SAE as it was saved, which reads raw activations. It is changed. Of several
        `holders`, each has a part of the latents. `sae` is the result of `first_sae`, if known.

        Raises:
            UsageError: the options do not fit.
        """
        config.check()
        sae = cls.first_sae(config, source, start_rows, trained) if sae is None else sae
        chosen = source.selection
        scale, target_scale = (_scale(config, sums) for sums in (chosen.read, chosen.written))
        holders = holders or Together()
        ranks, replicas = holders.ranks, holders.replicas
        if ranks.world > 1:
            keep_shard(sae, ranks.rank, ranks.world, replicas)
        variance = chosen.written.total_variance
        steps = choose_steps(config, sae, source.device, variance * target_scale**2)
        return cls(config, steps, source.device, variance, scale, target_scale, ranks=ranks)

    @staticmethod
    def first_sae(
        config: TrainConfig,
        source: Source,
        start_rows: Float[Tensor, "n d_in"],
        trained: AbstractSAE | None = None,
    ) -> AbstractSAE:
        """The SAE before the first step, on the CPU; see `start`."""
        sae = untrained_sae(config, source.site.d_in, source.target.d_in, source.widths)
        chosen = source.selection
        scale, target_scale = (_scale(config, sums) for sums in (chosen.read, chosen.written))
        rows = start_rows * scale
        if sae.is_transcoder:
            start_transcoder(sae, rows, source.start_targets * target_scale)
        # Also before trained weights are loaded: what a variant computes from the rows is then the
        # same when a run continues from a checkpoint.
        sae.initialise(rows)
        if trained is not None:
            trained.rescale(1 / scale, 1 / target_scale)
            start_from(sae, trained, rows)
        return sae

    @property
    def target_variance(self) -> float:
        """V of the reconstructed site, scaled."""
        return self.total_variance * self.target_scale**2

    @property
    def remedy(self) -> str:
        """What to change if the training fails, as a sentence without its end."""
        if self.steps.uses_rate:
            return f"lower --lr ({self.config.peak_lr:g}) or warm up for longer"
        return f"raise --batch-size ({self.config.batch_size})"

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return self.step >= self.config.n_steps

    def rate(self, step: int) -> float:
        """The learning rate of step `step` (0-based).

        When a run is made longer, its rate moves linearly from the old value to that of a run of
        the new length, over as many steps as the warm-up (arXiv 2403.08763: a rate that had fallen
        is warmed up again).
        """
        planned = learning_rate(self.config, step)
        if self.rise is None:
            return planned
        first, before = self.rise
        share = min(1.0, (step + 1 - first) / max(1, self.config.n_warmup))
        return before + share * (planned - before)

    def risen(self) -> str | None:
        """The change of the rate in a run that was just made longer, as a sentence; else None."""
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

    def train_on(self, batch: Batch, objective: Objective) -> StepResult:
        """One optimizer step."""
        batch = as_read(batch, self.steps.dtype, self.target_scale)
        context = LossContext(
            self.target_variance, None, self.step, self.config.n_steps, self.config.seed
        )
        lr = self.rate(self.step)
        done = self.steps.optimizer_step(batch, objective, context, lr=lr, scale=self.scale)
        self.step += 1
        return done

    def finish(self, rows: Float[Tensor, "n d_in"]) -> AbstractSAE:
        """The SAE for activations in their own units, calibrated on these raw rows.

        Several processes call this together; each gets its latents.
        """
        return self.in_own_units(self.steps.trained(), rows)

    def snapshot(self, rows: Float[Tensor, "n d_in"]) -> AbstractSAE:
        """The result of `finish` at this step, without a change of the training."""
        return self.in_own_units(copy.deepcopy(self.steps.trained()), rows)

    def averaged(self, rows: Float[Tensor, "n d_in"]) -> AbstractSAE | None:
        """The SAE of the averaged weights at this step, if asked for; see `snapshot`."""
        if self.steps.average is None:
            return None
        return self.in_own_units(self.steps.averaged(), rows)

    @property
    def replicas(self) -> Replicas:
        """Which rows of a batch this process reads."""
        return ALONE if self.steps.spread is None else self.steps.spread.replicas

    def in_all(self, n: Int[Tensor, ""]) -> Int[Tensor, ""]:
        """The sum of what a replica's processes count."""
        spread = self.steps.spread
        return n if spread is None else spread.shard.sum_all(n)

    def in_own_units(self, sae: AbstractSAE, rows: Float[Tensor, "n d_in"]) -> AbstractSAE:
        """Calibrate `sae`, which reads scaled activations, on raw rows, and make it read raw ones.

        `sae` is changed in place and returned.
        """
        sae.calibrate(rows.to(device_of(sae)) * self.scale)
        sae.rescale(self.scale, self.target_scale)
        return sae

    def save(self, directory: Path, place: Place) -> None:
        """Write a checkpoint of this step below `directory`; `place` is the stream's position."""
        state = CheckpointState(
            step=self.step,
            batches=place,
            by=self.steps.name,
            options=self.config.model_dump(mode="json"),
            n_steps=self.config.n_steps,
            rate=self.rate(max(0, self.step - 1)) if self.steps.uses_rate else None,
            rise=self.rise,
            interval=None if self.report is None else self.report.interval,
        )
        log = None if self.report is None else self.report.log
        path = checkpoint_path(directory, self.step)
        tensors, parts = write_held(path, self.steps, self.device)
        if self.ranks.leads:
            self.checkpoint = save_checkpoint(
                directory, tensors, state, log, before=self.checkpoint, parts=parts
            )
        # No replica goes on, or ends, before the file is there.
        self.replicas.sum_all(torch.zeros(1, device=self.device))

    def restore(self, directory: Path, start: Place | None = None) -> Place | None:
        """Continue from the newest whole checkpoint below `directory`; None if there is none.

        Returns the stream's position; `start` is its first position.

        Raises:
            UsageError: the checkpoint was made by the other kind of step, or all checkpoints are
                damaged.
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
        tensors, log = read_held(found, self.steps, self.device)
        self.steps.load(tensors)
        self.step, self.checkpoint = state.step, found.path
        if state.interval is not None and log is not None:
            self.report = Report(log, state.interval)
        self.rise = state.rise
        if state.rate is not None and state.n_steps != self.config.n_steps:
            self.rise = (state.step, state.rate)
        return state.batches


def _scale(config: TrainConfig, sums: ColumnSums) -> float:
    """The factor that gives unit variance per dimension, if asked for; else 1."""
    variance = sums.total_variance
    return (len(sums.sum) / variance) ** 0.5 if config.normalise and variance else 1.0


def _differs(there: dict[str, Any], here: dict[str, Any], name: str) -> bool:
    """Whether an option has changed; an option that did not exist yet has not."""
    if name not in there:
        return False
    old, new = there[name], here[name]
    if isinstance(old, dict) and isinstance(new, dict):
        return any(_differs(old, new, inner) for inner in new)
    return old != new


def _alike(place: Place, start: Place) -> bool:
    """Whether a saved stream position has the keys and types of `start`."""
    return all(type(place.get(name)) is type(value) for name, value in start.items()) and all(
        value >= 0 for value in place.values() if isinstance(value, int)
    )

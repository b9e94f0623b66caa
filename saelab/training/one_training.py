"""One SAE in a group trained on the same batches: its steps, and the files it writes."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.console import say
from saelab.lock import check_held
from saelab.sae.base import AbstractSAE
from saelab.sae.storage import save_sae
from saelab.training.checkpoint import remove_checkpoints
from saelab.training.config import TrainConfig
from saelab.training.directory import write_run
from saelab.training.divergence import DivergedError, Watch, diverged, worse_than_constant
from saelab.training.feeds import Feed
from saelab.training.kept import as_kept, keeps, part_of
from saelab.training.metrics import IntervalMetrics, MetricsLog, Report
from saelab.training.run import Run
from saelab.training.run_paths import AVERAGED, kept_at
from saelab.training.source import Batch, Source
from saelab.training.state import TrainingState
from saelab.training.step_parts import StepResult
from saelab.types import Figures


@dataclass
class Training:
    """One SAE in a group: its state, its directory, and its reports.

    Where several processes hold the SAE, all do the same, and the first writes the files.

    Attributes:
        feed: what it reads.
        log: None in a process that writes no files.
        watch: checks whether the SAE has diverged.
        saved: the step of the last checkpoint; None if there is none.
        diverged: the error if the SAE has diverged.
    """

    directory: Path
    state: TrainingState
    feed: Feed
    log: MetricsLog | None
    metrics: IntervalMetrics
    watch: Watch
    saved: int | None
    diverged: DivergedError | None = None

    def step_and_write(self, batch: Batch, *, stopping: bool) -> Figures | None:
        """Do one step and write what is due; returns the figures of a log interval that ends here.

        A training that diverges stops and keeps what it has written.
        """
        try:
            line = self._step(batch)
            # Before the checkpoint, since a kill between the two must not lose a kept SAE.
            if keeps(self.state.config, self.state.step):
                self.keep()
            if self.is_due() or stopping:
                self.save()
            if self.state.finished:
                self.finish()
        except DivergedError as error:
            self.diverged = error
            return None
        return line

    def _step(self, batch: Batch) -> Figures | None:
        state = self.state
        done = state.train_on(batch, self.feed.objective)
        self.metrics.count(len(done.x) * state.replicas.count, done.terms.parts)
        if state.step % state.config.log_every and not state.finished:
            return None
        values = self.metrics.summary()
        if not all(map(math.isfinite, values.values())) or self.watch.finds_wrong(values["fvu"]):
            raise self._diverged(f"loss {values['loss']:.3g}, FVU {values['fvu']:.3g}")
        if state.finished and state.config.objective == "local":
            worse = worse_than_constant(self.directory, values["fvu"], state.remedy)
            if worse is not None:
                say(worse)
        line = _log_line(state, values, done.gradient_norm)
        if self.log is not None:
            self.log.write(line)
        self.metrics.reset()
        return line

    def check(self) -> None:
        """Refuse to write weights that have diverged.

        Raises:
            DivergedError: the weights have diverged.
        """
        if (problem := self.watch.problem(self.state.steps.trained())) is not None:
            raise self._diverged(problem)

    def _diverged(self, found: str) -> DivergedError:
        state = self.state
        return diverged(self.directory, state.step, found, self.saved, state.remedy)

    def save(self) -> None:
        """Write a checkpoint of this step."""
        if self.log is not None:
            check_held(self.directory)
        self.check()
        interval = self.metrics.interval()
        if not interval.finite:
            raise self._diverged(f"loss {interval.loss:.3g}")
        self.state.report = None
        if self.log is not None:
            self.log.sync()
            # The log of a whole run is in its own file: its times would make equal states differ.
            if not self.state.finished:
                self.state.report = Report(bytes(self.log.text), interval)
        self.state.save(self.directory / "checkpoints", self.feed.position.state_dict())
        self.saved = self.state.step

    def keep(self) -> None:
        """Save the current SAE as a run inside this run."""
        self.check()
        source = self.feed.source
        config = as_kept(self.state.config, self.state.step)
        out = kept_at(self.directory, config.n_tokens)
        sae = self.state.snapshot(source.calibration_rows())
        self.write_beside(out, config, sae, source)
        self._write_average(out, config, source)

    def write_beside(
        self, out: Path, config: TrainConfig, sae: AbstractSAE, source: Source, **facts: object
    ) -> Run:
        """Make `sae`, which reads raw activations, a run; `facts` are added to its provenance.

        All processes that hold it call this together.
        """
        part = part_of(self.state.config, self.state.step) | facts
        record = Run(self.directory).provenance() | {"part_of": part}
        log = None if self.log is None else self.log.path
        return write_run(out, config, sae, record=record, facts=self.facts(source), log=log)

    def _write_average(self, of: Path, config: TrainConfig, source: Source) -> None:
        """Write the SAE of the averaged weights as a run inside `of`, if asked for."""
        averaged = self.state.averaged(source.calibration_rows())
        if averaged is not None:
            self.write_beside(of / AVERAGED, config, averaged, source, averaged=config.ema)

    def facts(self, source: Source) -> dict[str, str]:
        """Facts for the header of the weights, beside the configuration."""
        return {
            "total_variance": repr(self.state.total_variance),
            "site": self.state.config.site,
            "target_site": self.state.config.written_site,
            "calibrated_on_held_back_rows": str(source.held_back),
        }

    def is_due(self) -> bool:
        """Whether this step needs a checkpoint; the last step does if the run keeps its state."""
        state, config = self.state, self.state.config
        if state.finished:
            return config.keep_state
        return state.step % config.checkpoint_every == 0

    def finish(self) -> None:
        """Write the final SAE; keep the checkpoints that a longer training needs."""
        source = self.feed.source
        if self.log is not None:
            check_held(self.directory)
        self.check()
        self._write_average(self.directory, self.state.config, source)
        sae = self.state.finish(source.calibration_rows())
        if self.log is not None:
            self.log.sync()
        # The weights come last: a run with weights is finished.
        save_sae(sae, self.directory / "weights.safetensors", self.facts(source))
        if self.log is not None:
            keep = self.state.config.keep_state
            remove_checkpoints(self.directory / "checkpoints", keep=keep)


def begin(out: Path, state: TrainingState, feed: Feed, watch: Watch) -> Training:
    """Begin the training at this state, with the reports up to it."""
    mean = torch.from_numpy(feed.source.selection.written.mean).to(state.device, torch.float32)
    mean = mean * state.target_scale
    spread, report = state.steps.spread, state.report
    metrics = IntervalMetrics(mean, None if spread is None else spread.shard)
    text = None if report is None else report.log
    log = None
    if state.ranks.leads:
        log = MetricsLog(out / "metrics.jsonl", after_step=state.step, text=text)
    if report is not None:
        metrics.load(report.interval)

    def measure(done: StepResult) -> None:
        metrics.add(done.x, done.terms)

    state.steps.measure = measure
    saved = None if state.checkpoint is None else state.step
    return Training(out, state, feed, log, metrics, watch, saved)


def watch_over(state: TrainingState, source: Source, rows: Float[Tensor, "n d_in"]) -> Watch:
    """The watch over a training that has not begun."""
    wanted = rows if source.config.target_site is None else source.start_targets
    x, wanted = rows * state.scale, wanted * state.target_scale
    return Watch.start(state.steps.trained(), x, wanted, state.target_variance)


def _log_line(state: TrainingState, values: Figures, norm: Float[Tensor, ""] | None) -> Figures:
    return {
        "step": state.step,
        "tokens": state.step * state.config.batch_size,
        **values,
        "dead": int(state.in_all(state.steps.n_dead())),
        **({"lr": state.rate(state.step - 1)} if state.steps.uses_rate else {}),
        **({} if norm is None else {"gradient_norm": float(norm)}),
    }

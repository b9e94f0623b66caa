"""Training: from configurations to run directories."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import UsageError
from saelab.console import progress, say
from saelab.lm.load import resolve_device
from saelab.lm.protocol import LanguageModel
from saelab.sae.base import AbstractSAE
from saelab.sae.storage import save_sae
from saelab.training.config import TrainConfig
from saelab.training.directory import as_begun, create, existing, go_on, settle, write_run
from saelab.training.interrupt import StopRequest, stop_on_signal
from saelab.training.kept import as_kept, keeps, part_of
from saelab.training.metrics import IntervalMetrics, MetricsLog, figures
from saelab.training.objectives import Objective, make_objective
from saelab.training.origin import Origin, check_start, has_begun
from saelab.training.plan import training_plan
from saelab.training.run import AVERAGED, Run, kept_at
from saelab.training.source import Batch, Source, Stream
from saelab.training.state import TrainingState
from saelab.types import Figures


def train(
    config: TrainConfig,
    *,
    out: str | Path,
    device: str | torch.device = "auto",
    lm: LanguageModel | None = None,
) -> Run:
    """The trained run at `out`; an interrupted one continues from its last checkpoint.

    SIGTERM or Ctrl-C saves a checkpoint and raises SystemExit. `lm` is the model, for training
    that runs it, if it is loaded already.

    Raises:
        UsageError: the store, the site or an option does not fit, or `out` holds another run.
    """
    return train_many({Path(out): config}, device=device, lm=lm)[0]


def train_many(
    configs: dict[Path, TrainConfig],
    *,
    device: str | torch.device = "auto",
    lm: LanguageModel | None = None,
) -> list[Run]:
    """The trained runs at these directories; SAEs that can share a read of the store do.

    Those share one whose activations, site, batch size, order of rows, and kind of objective are
    equal; the others are trained after them. Everything is checked before any training starts.

    Raises:
        UsageError: as for `train`.
    """
    where = resolve_device(device)
    begun = {out: as_begun(c, out) for out, c in configs.items()}
    missing = {out: c for out, c in begun.items() if not _is_done(c, out)}
    groups: dict[tuple[object, ...], dict[Path, TrainConfig]] = {}
    for out, config in missing.items():
        config.check()
        groups.setdefault(_shared(config), {})[out] = config
    for group in groups.values():
        source = Source(list(group.values()), where)
        source.check_varies()
        for out, config in group.items():
            check_start(config, out, source)
    for group in groups.values():
        _train_group(group, where, lm)
    return [Run(out) for out in configs]


def _is_done(config: TrainConfig, out: Path) -> bool:
    run = existing(config, out)
    if run is None or not run.finished or run.options["n_tokens"] < config.n_tokens:
        return False
    settle(config, run)
    return True


def _shared(config: TrainConfig) -> tuple[object, ...]:
    """What must be equal for two SAEs to read the same batches and share an objective."""
    live = (config.kl_coefficient, config.downstream_coefficient, config.downstream_sites)
    sites = (config.activations, config.site, config.target_site)
    order = (config.batch_size, config.order_seed, config.live)
    rows = (config.outliers, config.first_position)
    return (*sites, *order, *rows, config.objective, live if config.objective != "local" else None)


@dataclass
class _Training:
    """One SAE of a group: its state, its directory, and what it reports."""

    directory: Path
    state: TrainingState
    log: MetricsLog
    metrics: IntervalMetrics

    def advance(self, batch: Batch, objective: Objective) -> Figures | None:
        """One step; the figures of the interval that it ended, if it did."""
        state = self.state
        done = state.advance(batch, objective)
        self.metrics.update(done.x, done.terms)
        if state.step % state.config.log_every and not state.finished:
            return None
        line = _log_line(state, self.metrics, done.gradient_norm)
        self.log.write(line)
        self.metrics.reset()
        return line

    def save(self, stream: Stream) -> None:
        self.state.save(self.directory / "checkpoints", stream.state_dict())

    def keep(self, source: Source) -> None:
        """Write the SAE as it is now as a run below this one."""
        config = as_kept(self.state.config, self.state.step)
        out = kept_at(self.directory, config.n_tokens)
        self.write_beside(out, config, self.state.snapshot(source.calibration_rows()), source)
        self._write_average(out, config, source)

    def write_beside(
        self, out: Path, config: TrainConfig, sae: AbstractSAE, source: Source, **facts: object
    ) -> Run:
        """Make `sae`, which reads raw activations, a run; `facts` join its provenance."""
        part = part_of(self.state.config, self.state.step) | facts
        record = Run(self.directory).provenance() | {"part_of": part}
        return write_run(
            out, config, sae, record=record, facts=self.facts(source), log=self.log.path
        )

    def _write_average(self, of: Path, config: TrainConfig, source: Source) -> None:
        """Write the SAE of the averaged weights as a run below `of`, if they are asked for."""
        averaged = self.state.averaged(source.calibration_rows())
        if averaged is not None:
            self.write_beside(of / AVERAGED, config, averaged, source, averaged=config.ema)

    def facts(self, source: Source) -> dict[str, str]:
        """What the header of the weights says beside the configuration."""
        return {
            "total_variance": repr(self.state.total_variance),
            "site": self.state.config.site,
            "target_site": self.state.config.written_site,
            "calibrated_on_held_back_rows": str(source.held_back),
        }

    def is_due(self) -> bool:
        """Whether this step needs a checkpoint; the last does for longer trainings."""
        state, config = self.state, self.state.config
        if state.finished:
            return config.keep_state
        return state.step % config.checkpoint_every == 0

    def finish(self, source: Source) -> None:
        """Write the SAE; of the checkpoints, what a longer training needs stays."""
        # First: a run with weights is finished.
        self._write_average(self.directory, self.state.config, source)
        sae = self.state.finish(source.calibration_rows())
        save_sae(sae, self.directory / "weights.safetensors", self.facts(source))
        if not self.state.config.keep_state:
            shutil.rmtree(self.directory / "checkpoints", ignore_errors=True)


def _train_group(
    group: dict[Path, TrainConfig], device: torch.device, lm: LanguageModel | None
) -> None:
    source = Source(list(group.values()), device, lm)
    for sentence in source.selection.sentences():
        say(sentence)
    training_plan(source, list(group.values())).announce()
    objective = make_objective(source)
    stream = source.stream()
    rows = source.start_rows()
    trainings: list[_Training] = []
    places = []
    for out, config in group.items():
        origin = None if has_begun(out) else Origin.of(config)
        state = TrainingState.start(config, source, rows, origin and origin.sae())
        places.append(state.restore(out / "checkpoints"))
        start = {} if origin is None else {"init_from": origin.facts()}
        create(config, out, source, step=state.steps.name, **start)
        if origin is not None:
            say(origin.sentence(config, source))
        go_on(config, out, state.step)
        if (sentence := state.risen()) is not None:
            say(f"{out}: {sentence}")
        log = MetricsLog(out / "metrics.jsonl", after_step=state.step)
        mean = torch.from_numpy(source.selection.written.mean).to(device, torch.float32)
        trainings.append(_Training(out, state, log, IntervalMetrics(mean * state.target_scale)))
    # A kill between two checkpoints of one step leaves the SAEs at different steps; the stream
    # starts where the last of them stands, and the others wait for it.
    first = min(range(len(group)), key=lambda i: trainings[i].state.step)
    if (place := places[first]) is not None:
        stream.load_state_dict(place)
    for training in trainings:
        if training.state.finished:  # It was stopped before its weights were written.
            training.finish(source)
    with stop_on_signal() as stop:
        _run(trainings, source, stream, objective, stop)


def _run(
    trainings: Sequence[_Training],
    source: Source,
    stream: Stream,
    objective: Objective,
    stop: StopRequest,
) -> None:
    step = min(t.state.step for t in trainings)
    last = max(t.state.config.n_steps for t in trainings)
    size = trainings[0].state.config.batch_size
    with progress(_title(trainings), last * size, "tokens", step * size) as bar:
        shown = step
        while step < last:
            batch = next(stream)
            running = [t for t in trainings if t.state.step == step and not t.state.finished]
            lines = [training.advance(batch, objective) for training in running]
            step += 1
            for training in running:
                # Before the checkpoint: a kill between the two must not lose what is kept.
                if keeps(training.state.config, step):
                    training.keep(source)
                if training.is_due() or stop.signal is not None:
                    training.save(stream)
                if training.state.finished:
                    training.finish(source)
            # One bar for all: the first SAE of the group speaks for them.
            if lines[0] is not None:
                bar.advance((step - shown) * size, figures(lines[0]))
                shown = step
            if stop.signal is not None and step < last:
                raise SystemExit(128 + stop.signal)


def _title(trainings: Sequence[_Training]) -> str:
    variants = {t.state.config.sae.variant for t in trainings}
    name = variants.pop() if len(variants) == 1 else "SAEs"
    ways = {t.state.steps.name for t in trainings} - {"autograd"}
    way = f" ({'/'.join(ways)} step)" if ways else ""
    return f"Train {name}{way}" if len(trainings) == 1 else f"Train {len(trainings)} {name}{way}"


def _log_line(
    state: TrainingState, metrics: IntervalMetrics, norm: Float[Tensor, ""] | None
) -> Figures:
    values = metrics.summary()
    if not all(value == value and abs(value) != float("inf") for value in values.values()):
        raise UsageError(
            f"Training diverged at step {state.step} (loss {values['loss']}); lower --lr."
        )
    return {
        "step": state.step,
        "tokens": state.step * state.config.batch_size,
        **values,
        "dead": state.steps.n_dead(),
        "lr": state.rate(state.step - 1),
        **({} if norm is None else {"gradient_norm": float(norm)}),
    }

"""Training: from configurations to run directories."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import UsageError
from saelab.console import progress, say
from saelab.files import check_directory, is_temporary
from saelab.interrupt import Stopped, StopRequest, stop_on_signal
from saelab.lm.load import resolve_device
from saelab.lm.protocol import LanguageModel
from saelab.lock import RUN_LOCK, check_held, writing
from saelab.owner import read_owner, runs
from saelab.sae.storage import save_sae
from saelab.training.checkpoint import remove_checkpoints
from saelab.training.config import TrainConfig
from saelab.training.directory import as_begun, create, existing
from saelab.training.metrics import IntervalMetrics, MetricsLog, Report, figures
from saelab.training.objectives import Objective, make_objective
from saelab.training.plan import training_plan
from saelab.training.run import Run
from saelab.training.schedule import learning_rate
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

    SIGTERM, SIGHUP or Ctrl-C saves a checkpoint and raises SystemExit. `lm` is the model, for
    training that runs it, if it is loaded already.

    Raises:
        UsageError: the store, the site or an option does not fit, `out` holds another run
            or cannot be written to, or another process writes it.
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
    for out in configs:
        check_directory(out)
    missing = _missing(configs)
    untidy = [out for out in configs if out not in missing and _is_untidy(out)]
    with ExitStack() as locks:
        for out in (*missing, *untidy):
            locks.enter_context(writing(out))
        for out in untidy:
            remove_checkpoints(out / "checkpoints")
        # Another process may have trained them before it let go.
        _train_all(_missing(missing), where, lm)
    return [Run(out) for out in configs]


def _train_all(
    missing: dict[Path, TrainConfig], where: torch.device, lm: LanguageModel | None
) -> None:
    groups: dict[tuple[object, ...], dict[Path, TrainConfig]] = {}
    for out, config in missing.items():
        config.check()
        groups.setdefault(_shared(config), {})[out] = config
    for group in groups.values():
        Source(list(group.values()), where).check_varies()
    for group in groups.values():
        _train_group(group, where, lm)


def _missing(configs: dict[Path, TrainConfig]) -> dict[Path, TrainConfig]:
    """Those that are not trained yet, as they were begun."""
    begun = {out: as_begun(config, out) for out, config in configs.items()}
    return {out: config for out, config in begun.items() if not _is_done(config, out)}


def _is_done(config: TrainConfig, out: Path) -> bool:
    run = existing(config, out)
    return run is not None and run.finished


def _is_untidy(out: Path) -> bool:
    """Whether a kill behind the last step has left what only the steps needed."""
    owner = read_owner(out / RUN_LOCK)
    if owner and runs(owner) is not False:
        return False  # Another verb is at work there, and tidies up itself.
    left = any(is_temporary(path) for path in out.iterdir())
    return bool(owner) or left or (out / "checkpoints").exists()


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
        check_held(self.directory)
        interval = self.metrics.interval()
        if not interval.finite:
            raise _diverged(self.state, interval.loss)
        self.state.report = Report(bytes(self.log.text), interval)
        self.state.save(self.directory / "checkpoints", stream.state_dict())

    def finish(self, source: Source) -> None:
        """Write the SAE; the checkpoints have done their work."""
        check_held(self.directory)
        sae = self.state.finish(source.calibration_rows())
        facts = {
            "total_variance": repr(self.state.total_variance),
            "site": self.state.config.site,
            "target_site": self.state.config.written_site,
            "calibrated_on_held_back_rows": str(source.held_back),
        }
        # The weights come last: a run that has them is finished.
        self.log.sync()
        save_sae(sae, self.directory / "weights.safetensors", facts)
        remove_checkpoints(self.directory / "checkpoints")


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
        state = TrainingState.start(config, source, rows)
        places.append(state.restore(out / "checkpoints", stream.state_dict()))
        create(config, out, source, step=state.steps.name)
        mean = torch.from_numpy(source.selection.written.mean).to(device, torch.float32)
        trainings.append(_begin(out, state, mean * state.target_scale))
        if state.finished:
            trainings[-1].finish(source)
    # A kill between two checkpoints of one step leaves the SAEs at different steps; the stream
    # starts where the last of them stands, and the others wait for it.
    first = min(range(len(group)), key=lambda i: trainings[i].state.step)
    if (place := places[first]) is not None:
        stream.load_state_dict(place)
    with stop_on_signal() as stop:
        _run(trainings, source, stream, objective, stop)


def _begin(out: Path, state: TrainingState, mean: Float[Tensor, " d"]) -> _Training:
    """The training where the state stands, and with what it had reported by then."""
    report, metrics = state.report, IntervalMetrics(mean)
    text = None if report is None else report.log
    log = MetricsLog(out / "metrics.jsonl", after_step=state.step, text=text)
    if report is not None:
        metrics.load(report.interval)
    return _Training(out, state, log, metrics)


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
                if training.state.finished:
                    training.finish(source)
                elif stop.signal is not None or step % training.state.config.checkpoint_every == 0:
                    training.save(stream)
            # One bar for all: the first SAE of the group speaks for them.
            if lines[0] is not None:
                bar.advance((step - shown) * size, figures(lines[0]))
                shown = step
            if stop.signal is not None and step < last:
                raise Stopped(stop.signal)


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
        raise _diverged(state, values["loss"])
    return {
        "step": state.step,
        "tokens": state.step * state.config.batch_size,
        **values,
        "dead": state.steps.n_dead(),
        "lr": learning_rate(state.config, state.step - 1),
        **({} if norm is None else {"gradient_norm": float(norm)}),
    }


def _diverged(state: TrainingState, loss: float) -> UsageError:
    return UsageError(f"Training diverged at step {state.step} (loss {loss}); lower --lr.")

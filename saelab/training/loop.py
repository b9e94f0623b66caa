"""Training: from configurations to run directories."""

from collections.abc import Sequence
from contextlib import ExitStack
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
from saelab.lock import RUN_LOCK, writing
from saelab.owner import read_owner, runs
from saelab.ranks import Ranks
from saelab.training.checkpoint import Place
from saelab.training.config import TrainConfig
from saelab.training.directory import as_begun, create, existing
from saelab.training.divergence import DivergedError
from saelab.training.longer import check_not_past, go_on, is_moved, settle
from saelab.training.metrics import figures
from saelab.training.objectives import Objective, make_objective
from saelab.training.one_training import Training, begin, watch_over
from saelab.training.origin import StartingRun, check_start, has_begun
from saelab.training.plan import training_plan
from saelab.training.run import Run
from saelab.training.source import Source, Stream
from saelab.training.state import TrainingState
from saelab.training.together import Together, Vote


def train(
    config: TrainConfig,
    *,
    out: str | Path,
    device: str | torch.device = "auto",
    lm: LanguageModel | None = None,
) -> Run:
    """The trained run at `out`; an interrupted one continues from its last checkpoint.

    SIGTERM, SIGHUP or Ctrl-C saves a checkpoint and raises SystemExit. `lm` is the language model
    for live or end-to-end training; it is loaded if not given.

    Raises:
        UsageError: the store, the site or an option does not fit, `out` holds another run
            or cannot be written to, or another process writes it.
        DivergedError: the loss is not finite, or FVU is far above its start; the last checkpoint
            before is kept.
    """
    return train_many({Path(out): config}, device=device, lm=lm)[0]


def train_many(
    configs: dict[Path, TrainConfig],
    *,
    device: str | torch.device = "auto",
    lm: LanguageModel | None = None,
    together: Together | None = None,
) -> list[Run]:
    """The trained runs at these directories; SAEs share one read of the store where they can.

    With `together`, several processes call this with equal arguments and train each SAE together,
    each on a part of its latents; the first writes the runs.

    SAEs share a read if activations, site, batch size, order of rows, and kind of objective are
    equal; other SAEs are trained afterwards. Everything is checked before any training starts.

    Raises:
        UsageError: as for `train`.
        DivergedError: as for `train`; the others are finished first.
    """
    where = resolve_device(device)
    together = together or Together()
    with ExitStack() as locks:
        missing = []
        with together.agreeing():
            if together.ranks.leads:
                missing = [str(out) for out in _begin_writing(configs, locks)]
        missing = together.of_first(missing)
        begun = {out: as_begun(c, out) for out, c in configs.items() if str(out) in missing}
        _train_all(begun, where, lm, together)
    return [Run(out) for out in configs]


def _begin_writing(configs: dict[Path, TrainConfig], locks: ExitStack) -> list[Path]:
    """The runs that are not trained yet, which `locks` now hold; the others are tidied up."""
    for out in configs:
        check_directory(out)
    missing = _missing(configs)
    untidy = [o for o, c in configs.items() if o not in missing and _is_untidy(c, o)]
    for out in (*missing, *untidy):
        locks.enter_context(writing(out))
    for out in untidy:
        settle(configs[out], Run(out))
    # Another process may have trained them while this one waited for the lock.
    return list(_missing(missing))


def _train_all(
    missing: dict[Path, TrainConfig],
    where: torch.device,
    lm: LanguageModel | None,
    together: Together,
) -> None:
    with together.agreeing():
        groups = _checked_groups(missing, where, together.ranks)
    problems = [e for group in groups for e in _train_group(group, where, lm, together)]
    if problems:
        others = len(missing) - len(problems)
        rest = f" The other {others} are finished." if others else ""
        raise DivergedError(" ".join(map(str, problems)) + rest)


def _checked_groups(
    missing: dict[Path, TrainConfig], where: torch.device, ranks: Ranks
) -> list[dict[Path, TrainConfig]]:
    """The SAEs that share a read each, once what they read is known to be right."""
    groups: dict[tuple[object, ...], dict[Path, TrainConfig]] = {}
    for out, config in missing.items():
        config.check()
        if ranks.world > 1 and (config.runs_model or config.live):
            raise UsageError(
                f"{ranks.world} processes train one SAE on a store's activations alone, and this "
                "training runs the model; start one process, without torchrun."
            )
        groups.setdefault(_shared(config), {})[out] = config
    for group in groups.values():
        source = Source(list(group.values()), where)
        source.check_markers()
        source.check_varies()
        for out, config in group.items():
            check_start(config, out, source)
    return list(groups.values())


def _missing(configs: dict[Path, TrainConfig]) -> dict[Path, TrainConfig]:
    """The runs that are not trained yet, with the configuration they were begun with."""
    begun = {out: as_begun(config, out) for out, config in configs.items()}
    return {out: config for out, config in begun.items() if not _is_done(config, out)}


def _is_done(config: TrainConfig, out: Path) -> bool:
    run = existing(config, out)
    if run is None or not run.finished or run.options["n_tokens"] < config.n_tokens:
        return False
    check_not_past(run, config, config.n_steps)
    return True


def _is_untidy(config: TrainConfig, out: Path) -> bool:
    """Whether a finished run keeps state it should not, or its store has moved."""
    owner = read_owner(out / RUN_LOCK)
    if owner and runs(owner) is not False:
        return False  # Another verb is at work there, and tidies up itself.
    n_checkpoints = sum(1 for _ in (out / "checkpoints").glob("step_*"))
    left = n_checkpoints > config.keep_state or any(is_temporary(path) for path in out.iterdir())
    return bool(owner) or left or is_moved(Run(out), config)


def _shared(config: TrainConfig) -> tuple[object, ...]:
    """What must be equal for two SAEs to share batches and an objective."""
    live = (config.kl_coefficient, config.downstream_coefficient, config.downstream_sites)
    sites = (config.activations, config.beside, config.site, config.target_site)
    order = (config.batch_size, config.order_seed, config.live)
    rows = (config.outliers, config.first_position)
    masks = (config.hidden_share, config.hide) if config.objective == "masked" else None
    return (*sites, *order, *rows, config.objective, live if config.runs_model else None, masks)


def _train_group(
    group: dict[Path, TrainConfig],
    device: torch.device,
    lm: LanguageModel | None,
    together: Together,
) -> list[DivergedError]:
    """Train a group of SAEs; returns the errors of those that diverged."""
    source = Source(list(group.values()), device, lm)
    for sentence in source.selection.sentences():
        say(sentence)
    training_plan(source, list(group.values())).announce()
    objective = make_objective(source)
    stream = source.stream()
    rows = source.start_rows()
    trainings: list[Training] = []
    places = []
    for out, config in group.items():
        training, place = _begun(config, out, source, stream, rows, together.ranks)
        trainings.append(training)
        places.append(place)
    # After a kill between two checkpoints of one step, the SAEs stand at different steps. The
    # stream starts at the earliest step, and SAEs that are ahead wait.
    first = min(range(len(group)), key=lambda i: trainings[i].state.step)
    if (place := places[first]) is not None:
        stream.load_state_dict(place)
    for training in trainings:
        if training.state.finished:  # It was stopped before its weights were written.
            training.finish(source)
    with stop_on_signal() as asked:
        stop = together.vote(asked)
        _run(trainings, source, stream, objective, stop)
    return [t.diverged for t in trainings if t.diverged is not None]


def _begun(
    config: TrainConfig,
    out: Path,
    source: Source,
    stream: Stream,
    rows: Float[Tensor, "n d_in"],
    ranks: Ranks,
) -> tuple[Training, Place | None]:
    """The training of one SAE where it stands, and its place in the stream; None at the start."""
    origin = None if has_begun(out) else StartingRun.of(config)
    state = TrainingState.start(config, source, rows, origin and origin.sae(), ranks)
    watch = watch_over(state, source, rows)
    place = state.restore(out / "checkpoints", stream.state_dict())
    facts: dict[str, object] = {} if origin is None else {"init_from": origin.facts()}
    if ranks.world > 1:
        facts["world_size"] = ranks.world
    if ranks.leads:
        create(config, out, source, step=state.steps.name, **facts)
        go_on(config, out, state.step)
    if origin is not None:
        say(origin.sentence(config, source))
    if (sentence := state.risen()) is not None:
        say(f"{out}: {sentence}")
    mean = torch.from_numpy(source.selection.written.mean).to(source.device, torch.float32)
    return begin(out, state, mean * state.target_scale, watch), place


def _run(
    trainings: Sequence[Training],
    source: Source,
    stream: Stream,
    objective: Objective,
    stop: StopRequest | Vote,
) -> None:
    step = min(t.state.step for t in trainings)
    last = max(t.state.config.n_steps for t in trainings)
    size = trainings[0].state.config.batch_size
    with progress(_title(trainings), last * size, "tokens", step * size) as bar:
        shown = step
        while step < last and any(t.diverged is None for t in trainings):
            batch, signal = next(stream), stop.signal
            running = [t for t in trainings if t.state.step == step and not t.state.finished]
            lines = [
                training.step_and_write(
                    batch, objective, source, stream, stopping=signal is not None
                )
                for training in running
                if training.diverged is None
            ]
            step += 1
            # One progress bar for the group: it shows the first SAE.
            if line := next((each for each in lines if each is not None), None):
                bar.advance((step - shown) * size, figures(line))
                shown = step
            if signal is not None and step < last:
                raise Stopped(signal)


def _title(trainings: Sequence[Training]) -> str:
    variants = {t.state.config.sae.variant for t in trainings}
    name = variants.pop() if len(variants) == 1 else "SAEs"
    ways = {t.state.steps.name for t in trainings} - {"autograd"}
    way = f" ({'/'.join(ways)} step)" if ways else ""
    return f"Train {name}{way}" if len(trainings) == 1 else f"Train {len(trainings)} {name}{way}"

"""Training: from configurations to run directories."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from saelab.config import UsageError
from saelab.console import progress, say
from saelab.files import check_directory, is_temporary
from saelab.interrupt import Stopped, StopRequest, stop_on_signal
from saelab.lm.load import device_beside
from saelab.lm.protocol import ActivationSource
from saelab.lock import RUN_LOCK, writing
from saelab.owner import read_owner, runs
from saelab.training.checkpoint import Place
from saelab.training.config import TrainConfig
from saelab.training.directory import as_begun, create, existing
from saelab.training.divergence import DivergedError
from saelab.training.feeds import (
    Feeds,
    by_feed,
    check_shares,
    held_together,
    open_feeds,
    shared_pass,
)
from saelab.training.first import First, first_saes
from saelab.training.longer import check_not_past, go_on, is_moved, settle
from saelab.training.metrics import figures_of
from saelab.training.one_training import Training, begin, watch_over
from saelab.training.origin import check_start
from saelab.training.run import Run
from saelab.training.source import Source
from saelab.training.state import TrainingState
from saelab.training.steps import check_asked
from saelab.training.together import Together, Vote


def train(
    config: TrainConfig,
    *,
    out: str | Path,
    device: str | torch.device = "auto",
    lm: ActivationSource | None = None,
) -> Run:
    """The trained run at `out`; an interrupted one continues from its last checkpoint.

    SIGTERM, SIGHUP or Ctrl-C saves a checkpoint and raises SystemExit. `lm` is the language model
    for live or end-to-end training, which is then where it is; it is loaded if not given.

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
    lm: ActivationSource | None = None,
    together: Together | None = None,
) -> list[Run]:
    """The trained runs at these directories; SAEs share one read of the store where they can.

    With `together`, several processes call this with equal arguments and train each SAE together,
    each on a part of its latents, and with replicas on a part of each batch's rows; the first
    writes the runs. Of live training, each process takes whole SAEs and a share of the model's
    passes.

    SAEs share a read if activations, site, batch size, order of rows, and kind of objective are
    equal, and the passes of a live model at any sites; other SAEs are trained afterwards.
    Everything is checked before any training starts.

    Raises:
        UsageError: as for `train`.
        DivergedError: as for `train`; the others are finished first.
    """
    runs_lm = any(config.live or config.runs_model for config in configs.values())
    where = device_beside(lm if runs_lm else None, device)
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
    lm: ActivationSource | None,
    together: Together,
) -> None:
    with together.agreeing():
        groups = _checked_groups(missing, where, together)
    found = []
    for number, group in enumerate(groups, 1):
        which = f", group {number} of {len(groups)}" if len(groups) > 1 else ""
        found += [str(error) for error in _train_group(group, where, lm, together, which)]
    # Also waits until all have written their runs.
    problems = list(dict.fromkeys(p for told in together.all_say(found) for p in told))
    if problems:
        others = len(missing) - len(problems)
        rest = f" The other {others} are finished." if others else ""
        raise DivergedError(" ".join(problems) + rest)


def _checked_groups(
    missing: dict[Path, TrainConfig], where: torch.device, together: Together
) -> list[dict[Path, TrainConfig]]:
    """The SAEs that share a read each, once what they read is known to be right."""
    ranks = together.ranks
    groups: dict[tuple[object, ...], dict[Path, TrainConfig]] = {}
    for out, config in missing.items():
        try:
            config.check()
            check_asked(config, where)
        except UsageError as error:
            raise UsageError(f"{_named(out, missing)}{error}") from error
        if ranks.world > 1 and config.runs_model:
            raise UsageError(
                f"{ranks.world} processes train SAEs on activations alone, and --objective "
                f"{config.objective} runs the model; start one process, without torchrun."
            )
        check_shares(config, together.replicas)
        groups.setdefault(shared_pass(config), {})[out] = config
    for feed in (feed for group in groups.values() for feed in by_feed(group)):
        source = Source(list(feed.values()), where)
        source.check_markers()
        source.check_varies()
        for out, config in feed.items():
            check_start(config, out, source)
    return list(groups.values())


def _named(out: Path, all_of_them: dict[Path, TrainConfig]) -> str:
    return f"Run {out.name}: " if len(all_of_them) > 1 else ""


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


def _train_group(
    group: dict[Path, TrainConfig],
    device: torch.device,
    lm: ActivationSource | None,
    together: Together,
    which: str = "",
) -> list[DivergedError]:
    """Train a group of SAEs; returns the errors of those that diverged. `which` names the group."""
    live, ranks = next(iter(group.values())).live, together.ranks
    told = together.all_say(held_together(group, device, ranks))
    common = {out for each in told for out in each}
    with together.agreeing():
        feeds = open_feeds(group, device, lm, ranks, common, together.replicas)
    if ranks.world > 1:
        feeds.facts |= {"world_size": ranks.world, "replicas": together.replicas.count}
    begun: list[tuple[Training, Place]] = []
    firsts = first_saes(feeds.feeds)
    for out in [out for _, part in feeds.feeds for out in part]:
        holders = together if str(out) in common else Together()
        with holders.agreeing():
            first = next(firsts)
        begun.append(_begun(first, feeds.facts, holders))
    step, trainings = _set_out(begun, feeds, together), [training for training, _ in begun]
    for training in trainings:
        if training.state.finished:  # It was stopped before its weights were written.
            training.finish()
    last = max(config.n_steps for config in group.values())
    with stop_on_signal() as asked:
        stop = together.vote(asked)
        helps = live and ranks.world > 1
        title = _title(trainings) + which
        _run(trainings, feeds, stop, range(step, last), title, helps=helps)
    return [t.diverged for t in trainings if t.diverged is not None]


def _set_out(begun: Sequence[tuple[Training, Place]], feeds: Feeds, together: Together) -> int:
    """Put the stream at the earliest step of all SAEs, also those of other processes.

    After a kill between two checkpoints of one step, the SAEs stand at different steps; those that
    are ahead then wait.
    """
    both = sorted(begun, key=lambda each: -each[0].state.step)
    for training, place in both:  # All, as this checks them; the earliest comes last.
        training.feed.position.load_state_dict(place)
    own = [both[-1][0].state.step, *feeds.position] if both else []
    told = [told for told in together.all_say([str(n) for n in own]) if told]
    step, *feeds.position = min([int(n) for n in each] for each in told)
    return step


def _begun(first: First, about: dict[str, Any], holders: Together) -> tuple[Training, Place]:
    """The training of one SAE where it stands, and its place in the stream."""
    feed, out, config, origin = first.feed, first.out, first.config, first.origin
    source, rows = feed.source, first.rows
    with holders.agreeing():
        state = TrainingState.start(config, source, rows, holders=holders, sae=first.sae)
    holders.check_same_step(state.steps.name)
    watch = watch_over(state, source, rows)
    start = feed.position.state_dict()
    place = state.restore(out / "checkpoints", start) or start
    facts = about if origin is None else about | {"init_from": origin.facts()}
    if holders.ranks.leads:
        create(config, out, source, step=state.steps.name, **facts)
        go_on(config, out, state.step)
    if origin is not None:
        say(origin.sentence(config, source))
    if (sentence := state.risen()) is not None:
        say(f"{out}: {sentence}")
    return begin(out, state, feed, watch), place


def _run(
    trainings: Sequence[Training],
    feeds: Feeds,
    stop: StopRequest | Vote,
    steps: range,
    title: str,
    *,
    helps: bool,
) -> None:
    """Do these steps; a process that `helps` others does not end before them."""
    size = feeds.batch_size
    with progress(title, steps.stop * size, "tokens", steps.start * size) as bar:
        shown = steps.start
        for step in steps:
            if not helps and all(t.diverged is not None for t in trainings):
                break
            batches, signal = next(feeds), stop.signal
            lines = [
                training.step_and_write(batches[training.feed.number], stopping=signal is not None)
                for training in trainings
                if training.state.step == step
                and not training.state.finished
                and training.diverged is None
            ]
            if told := [line for line in lines if line is not None]:
                bar.advance((step + 1 - shown) * size, figures_of(told))
                shown = step + 1
            if signal is not None and step + 1 < steps.stop:
                raise Stopped(signal)


def _title(trainings: Sequence[Training]) -> str:
    if not trainings:
        return "Run the model for other processes"
    variants = {t.state.config.sae.variant for t in trainings}
    name = variants.pop() if len(variants) == 1 else "SAEs"
    ways = {t.state.steps.name for t in trainings}
    if trainings[0].state.ranks.world == 1:
        ways -= {"autograd"}
    way = f" ({'/'.join(ways)} step)" if ways else ""
    return f"Train {name}{way}" if len(trainings) == 1 else f"Train {len(trainings)} {name}{way}"

"""What the SAEs of a group read: one site of a store, or any sites of the running model."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from saelab.activations.live import LiveBatches
from saelab.activations.live_text import LiveOptions
from saelab.activations.resume import Position
from saelab.activations.row_exchange import RowExchange
from saelab.activations.store import ActivationStore
from saelab.config import UsageError
from saelab.console import in_bytes, say
from saelab.lm.protocol import ActivationSource
from saelab.ranks import Ranks
from saelab.resources import Plan, free_on
from saelab.shard import ALONE, Replicas
from saelab.training.config import TrainConfig
from saelab.training.objectives import Objective, make_objective
from saelab.training.plan import Part, alone_bytes, live_plan, training_plan
from saelab.training.source import Batch, Source, Stream

Group = Mapping[Path, TrainConfig]


@dataclass(frozen=True)
class Feed:
    """What SAEs of one site read.

    Attributes:
        number: which of the group's feeds it is.
        position: that of the next batch, as their checkpoints keep it.
    """

    number: int
    source: Source
    objective: Objective
    position: Position


class Feeds(Iterator[list[Batch]]):
    """The next batch of each feed of a group of SAEs.

    A group that reads a store has one feed. A group that reads the running model has any number of
    them, and one pass of the model serves them all.

    Attributes:
        feeds: each with the SAEs that read it.
        batch_size: rows of each batch.
        facts: for the provenance of each run.
    """

    def __init__(
        self, stream: Stream | LiveBatches, feeds: Sequence[tuple[Feed, Group]], batch_size: int
    ) -> None:
        self._stream, self.feeds, self.batch_size = stream, feeds, batch_size
        self.facts: dict[str, Any] = {}

    @override
    def __next__(self) -> list[Batch]:
        if isinstance(self._stream, LiveBatches):
            return [*next(self._stream)]
        return [next(self._stream)]

    @property
    def position(self) -> list[int]:
        """Where live batches stand, in any process that reads them; empty for a store."""
        return [*self._stream.position] if isinstance(self._stream, LiveBatches) else []

    @position.setter
    def position(self, position: Sequence[int]) -> None:
        if isinstance(self._stream, LiveBatches) and position != self.position:
            pool, offset = position
            self._stream.position = pool, offset


def shared_pass(config: TrainConfig) -> tuple[object, ...]:
    """What must be equal for two SAEs to be trained beside each other."""
    if not config.live:
        return shared_feed(config)
    rows = (config.batch_size, config.order_seed, config.first_position, config.buffer_rows)
    return (config.activations, "live", *rows)


def shared_feed(config: TrainConfig) -> tuple[object, ...]:
    """What must be equal for two SAEs to share batches and an objective."""
    kl = (config.kl_coefficient, config.downstream_coefficient, config.downstream_sites)
    sites = (config.activations, config.beside, config.site, config.target_site)
    order = (config.batch_size, config.order_seed, config.live, config.buffer_rows)
    rows = (config.outliers, config.first_position)
    masks = (config.hidden_share, config.hide) if config.objective == "masked" else None
    return (*sites, *order, *rows, config.objective, kl if config.runs_model else None, masks)


def by_feed(group: Group) -> list[dict[Path, TrainConfig]]:
    """The SAEs that read the same batches."""
    found: dict[tuple[object, ...], dict[Path, TrainConfig]] = {}
    for out, config in group.items():
        found.setdefault(shared_feed(config), {})[out] = config
    return list(found.values())


def check_shares(config: TrainConfig, replicas: Replicas) -> None:
    """Refuse a training of which the replicas cannot each take as many rows of a batch.

    Raises:
        UsageError: gives the reason.
    """
    if (count := replicas.count) == 1:
        return
    if config.live:
        raise UsageError(
            f"--replicas {count} is for training from a store: with --live each process takes "
            "whole SAEs and a share of the text already; leave it out."
        )
    if config.batch_size % count:
        raise UsageError(
            f"batch_size={config.batch_size} is no multiple of --replicas {count}, which take as "
            f"many rows each; take {max(1, round(config.batch_size / count)) * count}."
        )


def held_together(group: Group, device: torch.device, ranks: Ranks) -> list[str]:
    """The SAEs that all processes hold together, by their directories.

    They are all that read a store. A process of live training holds whole SAEs, but for those that
    are too wide for its device.
    """
    first = next(iter(group.values()))
    if not first.live or ranks.world == 1:
        return [str(out) for out in group]
    store, free = ActivationStore(first.activations), free_on(device)

    def is_wide(config: TrainConfig) -> bool:
        d_in, d_out = (store.site(site).d_in for site in (config.site, config.written_site))
        needed = alone_bytes(config, d_in, d_out, device)
        return config.sae.spread_problem is None and needed > free

    return [str(out) for out, config in group.items() if is_wide(config)]


def share_out(
    group: Group, store: ActivationStore, ranks: Ranks, common: Collection[str] = ()
) -> list[dict[Path, TrainConfig]]:
    """Whole SAEs for each process, so that the weights of each add up to about the same.

    Each process also gets, first and in one order, the `common` ones, which all hold together.
    """
    weights = {
        out: config.sae.d_sae * sum(store.site(s).d_in for s in (config.site, config.written_site))
        for out, config in group.items()
        if str(out) not in common
    }
    shared = {out: config for out, config in group.items() if str(out) in common}
    load, parts = [0] * ranks.world, [dict(shared) for _ in range(ranks.world)]
    for out in sorted(weights, key=lambda out: -weights[out]):
        least = load.index(min(load))
        load[least] += weights[out]
        parts[least][out] = group[out]
    return parts


def open_feeds(
    group: Group,
    device: torch.device,
    lm: ActivationSource | None,
    ranks: Ranks,
    common: Collection[str],
    replicas: Replicas = ALONE,
) -> Feeds:
    """This process's feeds of a group; says what they need. See `open_live`.

    Of a store, a process of one of several `replicas` reads a part of each batch.

    Raises:
        UsageError: what it reads cannot be read, or does not fit into memory.
    """
    if next(iter(group.values())).live:
        return open_live(group, device, lm, ranks, common)
    return open_stored(group, device, lm, ranks, replicas)


def open_stored(
    group: Group,
    device: torch.device,
    lm: ActivationSource | None,
    ranks: Ranks,
    replicas: Replicas = ALONE,
) -> Feeds:
    """The one feed of a group that reads a store; says what each process needs.

    Raises:
        UsageError: it cannot be read, or does not fit into memory.
    """
    configs = list(group.values())
    source = Source(configs, device, lm)
    for sentence in source.selection.sentences():
        say(sentence)
    training_plan(source, configs, ranks.world // replicas.count, replicas.count).announce()
    stream = source.stream(replicas)
    feed = Feed(0, source, make_objective(source), stream)
    return Feeds(stream, [(feed, group)], source.config.batch_size)


def open_live(
    group: Group,
    device: torch.device,
    lm: ActivationSource | None,
    ranks: Ranks,
    common: Collection[str] = (),
) -> Feeds:
    """This process's feeds of a group that reads the running model; says what they need.

    All processes hold the `common` SAEs together, and each other one is held by one of them.

    Raises:
        UsageError: a site cannot be read, or all of them do not fit into memory.
    """
    config = next(iter(group.values()))
    first = Source([config], device, lm)
    parts = share_out(group, first.store, ranks, common)
    own = by_feed(parts[ranks.rank])
    wanted = [[h for c in part.values() for h in (c.site, c.written_site)] for part in parts]
    reader = first.reader([hook for hooks in wanted for hook in hooks])
    sources = [Source(list(part.values()), device, reader) for part in own]
    text, manifest = first.text, first.store.manifest
    batches = LiveBatches(
        reader,
        text,
        [source.live_site for source in sources],
        config.batch_size,
        LiveOptions(
            seed=config.order_seed,
            # An endless text continues where the store's ends.
            first=manifest.n_contexts if text.endless else 0,
            pool_rows=config.buffer_rows,
            first_position=config.first_position,
        ),
        RowExchange.of(reader, wanted, ranks),
    )
    for sentence in (s for source in sources for s in source.selection.sentences()):
        say(sentence)
    members = [
        (source, [config for out, config in part.items() if (str(out) in common) is shared], n)
        for source, part in zip(sources, own, strict=True)
        for shared, n in ((False, 1), (True, ranks.world))
    ]
    _plan([part for part in members if part[1]], batches, ranks).announce()
    feeds = [
        (Feed(i, source, make_objective(source), batches.position_of(source.live_site)), part)
        for i, (source, part) in enumerate(zip(sources, own, strict=True))
    ]
    found = Feeds(batches, feeds, config.batch_size)
    found.facts["live"] = _mixed(batches)
    return found


def _plan(parts: Sequence[Part], batches: LiveBatches, ranks: Ranks) -> Plan:
    """What the SAEs take; on a GPU with room for two pools of rows, one is filled ahead."""
    plan = live_plan(parts, batches)
    if batches.device.type == "cuda" and ranks.world == 1:
        both = replace(plan, memory=plan.memory + batches.pool_bytes)
        batches.ahead = both.fits
        return both if both.fits else plan
    return plan


def _mixed(batches: LiveBatches) -> dict[str, Any]:
    """How the rows are mixed, said and returned."""
    effects = batches.mixing()
    say(
        f"Rows of {batches.pool_contexts} contexts are shuffled together "
        f"({in_bytes(batches.pool_bytes)}); design effect "
        + ", ".join(f"{value:.2f} of {name.replace('_', ' ')}" for name, value in effects.items())
        + " (1: as good as independent rows; --buffer-rows)."
    )
    rounded = {name: round(value, 4) for name, value in effects.items()}
    return {"contexts": batches.pool_contexts, "design_effect": rounded}

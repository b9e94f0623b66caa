"""The ways from a model to trained and explained SAEs: by a store, or from the running model."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from saelab.bench.costs import (
    CONTEXTS,
    Bytes,
    Fleet,
    Work,
    exchanged,
    fewest,
    live_memory,
    measuring_memory,
    model_memory,
    pass_seconds,
    sae_memory,
    sharings,
    step_parts,
    too_large,
)
from saelab.bench.pace import Pace
from saelab.console import in_bytes
from saelab.kernels.exchange import averaged

MOST_GPUS = 2**20
AFTERWARDS = ("evaluate", "features")


@dataclass
class Way:
    """One way from a model to features.

    Attributes:
        gpus: GPUs that it uses.
        shards: GPUs that share one SAE's latents.
        replicas: how many times so many GPUs hold it, for a part of the rows each.
        measuring: GPUs that evaluate and collect features at once, one an SAE.
        memory: bytes on a GPU when most of it is full, by part.
        disk: bytes of the store.
        traffic: bytes in all, by place.
        seconds: wall-clock time, by stage.
        parts: seconds of one SAE's step, by part.
        problem: why it is impossible; None: it is not.
        note: what it leaves undone.
    """

    name: str
    gpus: int = 1
    shards: int = 1
    replicas: int = 1
    measuring: int = 1
    memory: Bytes = field(default_factory=dict)
    disk: int = 0
    traffic: Bytes = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    problem: str | None = None
    note: str | None = None

    @property
    def wall(self) -> float:
        """Seconds from start to end."""
        return sum(self.seconds.values())

    @property
    def gpu_hours(self) -> float:
        """Hours of all GPUs that it uses, in each stage as many as work."""
        after = sum(self.seconds.get(stage, 0.0) for stage in AFTERWARDS)
        return (self.gpus * (self.wall - after) + self.measuring * after) / 3600

    @property
    def limit(self) -> str:
        """The stage that takes longest; of a training's steps also their largest part."""
        stage = max(self.seconds, key=lambda name: self.seconds[name])
        if stage != "steps":
            return stage
        return f"steps: {max(self.parts, key=lambda name: self.parts[name])}"


def ways(job: Work, fleet: Fleet) -> list[Way]:
    """Every way, the impossible ones with their problem."""
    few = fewest(job, fleet, fleet.gpus) or max(sharings(job, fleet.gpus))
    found = [by_store(job, fleet, few)]
    if (all_gpus := max(sharings(job, fleet.gpus))) > few:
        found.append(by_store(job, fleet, all_gpus))
    size = max(few, min(all_gpus, fleet.per_host))
    if (replicas := all_gpus // size) > 1 and job.batch_size % replicas == 0:
        found.append(by_store(job, fleet, size, replicas))
    return [*found, site_by_site(job, fleet), one_pass(job, fleet)]


def cheapest(found: list[Way]) -> Way | None:
    """The possible way of the fewest GPU hours; of equal ones, the shortest."""
    possible = [way for way in found if way.problem is None]
    return min(possible, key=lambda way: (way.gpu_hours, way.wall), default=None)


def by_store(job: Work, fleet: Fleet, shards: int, replicas: int = 1) -> Way:
    """Harvest all sites once; then train every SAE on `shards` GPUs, as many at once as fit.

    Of several `replicas`, each has so many GPUs.
    """
    pace, n, every = fleet.pace, len(job.sites), shards * replicas
    lanes = min(n, fleet.gpus // every)
    name = f"store, {every} GPUs an SAE" if every > 1 else "store"
    way = Way(name, lanes * every, shards, replicas)
    if replicas > 1:
        way.name = f"{name}, {replicas} replicas"
    part = replace(job, batch_size=job.batch_size // replicas, replicas=replicas)
    harvesting, training = _harvest_memory(job, fleet), sae_memory(part, pace, shards)
    way.memory = max(harvesting, training, key=lambda memory: sum(memory.values()))
    way.disk = job.n_tokens * job.row_bytes
    way.traffic = {"disk, written": way.disk, "disk, read": job.n_tokens * job.read_bytes}
    way.seconds = {"start": pace.start * (1 + math.ceil(n / lanes))}
    way.seconds["forward passes"] = _forward(job, fleet, way.gpus)
    writing = way.disk / (pace.write * fleet.hosts(way.gpus))
    way.seconds["writing"] = max(0.0, writing - way.seconds["forward passes"])
    _steps(job, fleet, way, lanes, pace.train)
    reading = way.traffic["disk, read"] / (pace.read * fleet.hosts(way.gpus))
    way.seconds["reading"] = max(0.0, reading - way.seconds["steps"])
    _afterwards(job, fleet, way)
    if not fleet.holds(training):
        need = fewest(job, fleet, MOST_GPUS)
        shared = f"{need} such GPUs hold an SAE" if need else "no number of them holds an SAE"
        way.problem = f"{too_large(fleet, training)}; {shared}"
    elif not fleet.holds(harvesting):
        way.problem = f"harvest: {too_large(fleet, harvesting)}"
    elif fleet.disk is not None and way.disk > fleet.disk:
        way.problem = f"the store takes {in_bytes(way.disk)}, and {in_bytes(fleet.disk)} is free"
    return way


def site_by_site(job: Work, fleet: Fleet) -> Way:
    """`train --live` for every SAE: the model runs again for each; one GPU holds it and an SAE."""
    pace, n = fleet.pace, len(job.sites)
    lanes = min(n, fleet.gpus)
    way = Way("live, each SAE alone", lanes)
    way.memory = sae_memory(job, pace, 1) | model_memory(job) | live_memory(job, 1, 1, 1)
    way.seconds = {"start": pace.start * math.ceil(n / lanes)}
    ends = job.targets or job.sites
    each = sum(pass_seconds(job, pace, pair) for pair in zip(job.sites, ends, strict=True))
    way.seconds["forward passes"] = pace.harvest * job.n_tokens * each / lanes
    _steps(job, fleet, way, lanes, 1.0)
    _afterwards(job, fleet, way)
    _check_live(job, fleet, way)
    return way


def one_pass(job: Work, fleet: Fleet) -> Way:
    """`train sweep --live`: a pass, spread over the GPUs, feeds the SAEs that they hold.

    It takes as many passes as all SAEs need to fit.
    """
    pace, n = fleet.pace, len(job.sites)
    lanes = min(n, fleet.gpus)
    way = Way("live, all in one pass", lanes)
    passes = 1
    way.memory = _pass_memory(job, pace, passes, lanes)
    while passes < n and not fleet.holds(way.memory):
        passes += 1
        way.memory = _pass_memory(job, pace, passes, lanes)
    way.name = way.name if passes == 1 else f"live, all in {passes} passes"
    way.seconds = {"start": pace.start * passes}
    way.seconds["forward passes"] = passes * _forward(job, fleet, lanes)
    _steps(job, fleet, way, lanes, 1.0)
    # A row goes from the GPU that ran the model to the one that holds its SAE.
    moved = job.n_tokens * sum(map(job.shape.width, job.hooks)) * job.number * (lanes - 1) // lanes
    hosts = fleet.hosts(lanes)
    way.traffic = {fleet.place(lanes): moved}
    rate = pace.link if hosts == 1 else min(pace.link, pace.network)
    way.seconds["rows to their GPUs"] = moved / lanes / rate
    _afterwards(job, fleet, way)
    _check_live(job, fleet, way)
    return way


def _pass_memory(job: Work, pace: Pace, passes: int, lanes: int) -> Bytes:
    """Bytes of a GPU where each of so many passes feeds its share of the SAEs."""
    every = math.ceil(len(job.sites) / passes)
    own = math.ceil(every / lanes)
    held = sae_memory(job, pace, 1, own)
    return held | model_memory(job) | live_memory(job, own, every, lanes)


def _check_live(job: Work, fleet: Fleet, way: Way) -> None:
    if job.sae.needs_gradient:
        way.problem = "a gradient SAE trains on gradients, which a store holds"
    elif not fleet.holds(way.memory):
        way.problem = too_large(fleet, way.memory)


def _harvest_memory(job: Work, fleet: Fleet) -> Bytes:
    """Bytes of a harvest with as many contexts per pass as fit, at most the default."""
    sizes = (model_memory(job, n) for n in _halved(CONTEXTS))
    found = model_memory(job, 1)
    return next((memory for memory in sizes if fleet.holds(memory)), found)


def _halved(n: int) -> Iterator[int]:
    while n:
        yield n
        n //= 2


def _forward(job: Work, fleet: Fleet, gpus: int) -> float:
    """Seconds of a pass over all tokens, spread over so many GPUs."""
    seconds = job.n_tokens * pass_seconds(job, fleet.pace, job.hooks) / gpus
    return fleet.pace.harvest * seconds


def _steps(job: Work, fleet: Fleet, way: Way, lanes: int, factor: float) -> None:
    """All SAEs' steps, as many at once as there are lanes."""
    widths = sorted(job.widths)
    rows = replace(job, batch_size=job.batch_size // way.replicas, replicas=way.replicas)
    times = [step_parts(rows, fleet, way.shards, width) for width in widths]
    sums = [sum(parts.values()) for parts in times]
    # The widest first, each on the lane that is free soonest.
    busy = [0.0] * lanes
    for seconds in reversed(sums):
        busy[busy.index(min(busy))] += seconds
    way.seconds["steps"] = factor * job.n_steps * max(busy)
    way.parts = times[-1]
    every = way.shards * way.replicas
    if way.shards > 1:
        fused = fleet.pace.kernels and job.kernels
        told = (exchanged(rows, way.shards, width, fused=fused) for width in widths)
        sent = sum(map(sum, told))
        way.traffic[fleet.place(way.shards)] = every * job.n_steps * sent
    if way.replicas > 1:
        m, n = -(-job.sae.d_sae // way.shards), way.replicas
        sent = sum(averaged(m, width // 2, width - width // 2, n) for width in widths)
        way.traffic["gradients of replicas"] = every * job.n_steps * sent


def _afterwards(job: Work, fleet: Fleet, way: Way) -> None:
    """Evaluate and features of each SAE, one GPU each."""
    if not fleet.holds(needed := measuring_memory(job)):
        way.note = (
            "evaluate and features, for which one device holds the model and the whole SAE "
            f"({in_bytes(sum(needed.values()))}), do not fit on a GPU; they need --device cpu on a "
            "host with so much memory, and are not counted"
        )
        return
    pace, way.measuring = fleet.pace, min(len(job.sites), fleet.gpus)
    rounds = math.ceil(len(job.sites) / way.measuring)
    passes = 3 * job.n_evaluated * pass_seconds(job, pace, [])
    way.seconds["evaluate"] = rounds * (pace.start + pace.evaluate * passes)
    token = pace.feature_token + pass_seconds(job, pace, job.sites)
    d_sae, width = job.sae.d_sae, max(job.widths)
    found = job.n_features * token + d_sae * pace.feature_latent
    found += pace.weights_seconds(d_sae, width, job.shape.d_vocab)
    way.seconds["features"] = rounds * (pace.start + found)

"""The ways from a model to trained and explained SAEs: by a store, or from the running model."""

import math

from saelab.activations.order import POOL_ROWS
from saelab.bench.road_plan import (
    STORED,
    Fleet,
    Way,
    Work,
    model_memory,
    pass_seconds,
    sae_memory,
    sharings,
    step_parts,
    too_large,
)
from saelab.config import UsageError
from saelab.console import in_bytes

GRADIENT = "a gradient SAE trains on gradients, which a store holds"


def ways(job: Work, fleet: Fleet, *, sweeps_live: bool = True) -> list[Way]:
    """Every way, the impossible ones with their problem.

    Args:
        job: what is to be done.
        fleet: the machines.
        sweeps_live: whether `saelab train sweep` has --live, without which there is no single pass.

    Raises:
        UsageError: the work contradicts itself.
    """
    if fleet.gpus < 1 or fleet.per_host < 1:
        raise UsageError(f"--gpus {fleet.gpus} and --per-host {fleet.per_host} must be positive.")
    single = one_pass(job, fleet)
    if not sweeps_live:
        single.problem = "`saelab train sweep` of this version has no --live"
    return [by_store(job, fleet), site_by_site(job, fleet), single]


def cheapest(found: list[Way]) -> Way | None:
    """The possible way of the fewest GPU hours; of equal ones, the shortest."""
    possible = [way for way in found if way.problem is None]
    return min(possible, key=lambda way: (way.gpu_hours, way.wall), default=None)


def by_store(job: Work, fleet: Fleet) -> Way:
    """Harvest all sites once; then train every SAE from the store, as many at once as fit."""
    pace, n = fleet.pace, len(job.sites)
    way = Way("by a store")
    way.shards = next(
        (g for g in sharings(fleet.gpus) if _fits(sae_memory(job, pace, g), fleet)), 0
    )
    shards = way.shards or max(sharings(fleet.gpus))
    lanes = min(n, fleet.gpus // shards)
    way.gpus, way.shards = min(fleet.gpus, max(lanes * shards, 1)), shards
    way.memory = sae_memory(job, pace, shards)
    way.disk = job.n_tokens * job.row_bytes
    way.traffic = {"disk, written": way.disk, "disk, read": _read(job)}
    way.seconds = {"start": pace.start * (1 + math.ceil(n / lanes))}
    way.seconds["forward passes"] = _forward(job, fleet, way.gpus, pace.harvest)
    writing = way.disk / (pace.read * fleet.hosts(way.gpus))
    way.seconds["writing"] = max(0.0, writing - way.seconds["forward passes"])
    _steps(job, fleet, way, lanes, pace.train)
    reading = way.traffic["disk, read"] / (pace.read * fleet.hosts(way.gpus))
    way.seconds["reading"] = max(0.0, reading - way.seconds["steps"])
    _afterwards(job, fleet, way, lanes)
    if not _fits(way.memory, fleet):
        way.problem = too_large(job, fleet, way.memory)
    elif fleet.disk is not None and way.disk > fleet.disk:
        way.problem = f"the store takes {in_bytes(way.disk)}, and {in_bytes(fleet.disk)} is free"
    return way


def site_by_site(job: Work, fleet: Fleet) -> Way:
    """`train --live` for every SAE: the model runs again for each; one GPU holds it and an SAE."""
    pace, n = fleet.pace, len(job.sites)
    way, lanes = Way("live, each SAE alone"), min(n, fleet.gpus)
    way.gpus = lanes
    pool = {"shuffled rows": 2 * 4 * POOL_ROWS * max(job.widths)}
    way.memory = sae_memory(job, pace, 1) | model_memory(job) | pool
    way.seconds = {"start": pace.start * math.ceil(n / lanes)}
    each = sum(pass_seconds(job, pace, [site]) for site in job.sites)
    way.seconds["forward passes"] = pace.harvest * job.n_tokens * each / lanes
    _steps(job, fleet, way, lanes, 1.0)
    _afterwards(job, fleet, way, lanes)
    if job.sae.needs_gradient:
        way.problem = GRADIENT
    elif job.targets:
        way.problem = "a transcoder trains from a store; --live reads one site"
    elif not _fits(way.memory, fleet):
        way.problem = too_large(job, fleet, way.memory)
    return way


def one_pass(job: Work, fleet: Fleet) -> Way:
    """One forward pass, spread over the GPUs, feeds the SAEs that they hold; or few passes."""
    pace, n = fleet.pace, len(job.sites)
    way, lanes = Way("live, all in one pass"), min(n, fleet.gpus)
    way.gpus = lanes
    beside, one = model_memory(job), sae_memory(job, pace, 1)
    pool = 2 * POOL_ROWS * job.row_bytes // n
    states = one["weights and moments"] + pool
    left = fleet.usable - sum(beside.values()) - sum(one.values()) - pool
    held = max(1, 1 + int(left // states))
    passes = math.ceil(n / (held * lanes))
    each = math.ceil(n / (passes * lanes))
    way.memory = sae_memory(job, pace, 1, each) | beside | {"shuffled rows": each * pool}
    way.seconds = {"start": pace.start * passes}
    way.seconds["forward passes"] = passes * _forward(job, fleet, lanes, pace.harvest)
    _steps(job, fleet, way, lanes, 1.0)
    # A row goes from the GPU that ran the model to the one that holds its SAE.
    moved = job.n_tokens * job.row_bytes * (lanes - 1) // lanes
    hosts = fleet.hosts(lanes)
    way.traffic = {"between GPUs" if hosts == 1 else "between hosts": moved}
    rate = pace.link if hosts == 1 else min(pace.link, pace.network)
    way.seconds["rows to their GPUs"] = moved / lanes / rate
    _afterwards(job, fleet, way, lanes)
    if job.sae.needs_gradient:
        way.problem = GRADIENT
    elif left < 0:
        way.problem = too_large(job, fleet, way.memory)
    return way


def _fits(memory: dict[str, int], fleet: Fleet) -> bool:
    return sum(memory.values()) <= fleet.usable


def _read(job: Work) -> int:
    """Bytes that all trainings read."""
    sites = [*job.sites, *job.targets]
    return STORED * (1 + job.sae.needs_gradient) * job.n_tokens * sum(map(job.shape.width, sites))


def _forward(job: Work, fleet: Fleet, gpus: int, factor: float) -> float:
    sites = [*job.sites, *job.targets]
    return factor * job.n_tokens * pass_seconds(job, fleet.pace, sites) / gpus


def _steps(job: Work, fleet: Fleet, way: Way, lanes: int, factor: float) -> None:
    """All SAEs' steps, as many at once as there are lanes."""
    times = sorted((step_parts(job, fleet, way.shards, w) for w in job.widths), key=_sum)
    longest = max(math.ceil(len(times) / lanes) * _sum(times[-1]), 0.0)
    even = sum(map(_sum, times)) / lanes
    # SAEs of unequal widths are spread evenly, but never finer than one.
    share = max(even, longest if len(set(job.widths)) == 1 else _sum(times[-1]))
    way.seconds["steps"] = factor * job.n_steps * share
    way.parts = times[-1]
    if way.shards > 1:
        d = max(job.widths) // 2
        sent = 2 * (way.shards - 1) * job.batch_size * d * 4 * job.n_steps * len(job.sites)
        where = "between GPUs" if fleet.hosts(way.shards) == 1 else "between hosts"
        way.traffic[where] = sent


def _sum(parts: dict[str, float]) -> float:
    return sum(parts.values())


def _afterwards(job: Work, fleet: Fleet, way: Way, lanes: int) -> None:
    """Evaluate and features of each SAE, one GPU each."""
    pace, rounds = fleet.pace, math.ceil(len(job.sites) / lanes)
    passes = 3 * job.n_evaluated * pass_seconds(job, pace, [])
    way.seconds["evaluate"] = rounds * (pace.start + pace.evaluate * passes)
    token = pace.feature_token + pass_seconds(job, pace, job.sites)
    found = job.n_features * token + job.sae.d_sae * pace.feature_latent
    way.seconds["features"] = rounds * (pace.start + found)

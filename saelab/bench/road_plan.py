"""What the road costs on any number of GPUs: memory, disk, traffic and time of each way to go it.

Laws, each in one place: a step is `Rates.parts` times the pace's factor, split over the GPUs that
share an SAE, and an exchange; a pass is `ModelShape.operations`; memory is that of
`saelab.training.plan` and `saelab.lm.cost`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from saelab.bench.machine import StepShape
from saelab.bench.pace import USABLE, Pace
from saelab.config import UsageError
from saelab.console import in_bytes
from saelab.lm.cost import pass_bytes
from saelab.lm.shape import ModelShape
from saelab.sae.base import AbstractSAEConfig
from saelab.sae.transcoder import check_transcoder
from saelab.training.plan import AT_REST, state_bytes, step_bytes

GUESSED_K = 64
"""Codes per row of variants that have no k."""
CANDIDATE = 12
"""Bytes of a code that GPUs which share an SAE tell each other: value, latent, row."""
SHARED_BY_KERNELS = False
"""Whether several processes that share an SAE train it by the fused step."""
FORWARD_CONTEXTS = 32
STORED = 2
"""Bytes of a stored number."""


@dataclass(frozen=True)
class Work:
    """What is to be done: an SAE at every site, or a transcoder from every site to its target.

    Attributes:
        targets: the reconstructed sites; empty: the sites themselves.
        length: positions per context.
        half: whether the model and the large products are in bfloat16.
        n_evaluated, n_features: tokens that evaluate and features read.
    """

    shape: ModelShape
    sites: tuple[str, ...]
    sae: AbstractSAEConfig
    n_tokens: int
    batch_size: int = 4096
    length: int = 128
    targets: tuple[str, ...] = ()
    half: bool = True
    n_evaluated: int = 50_000
    n_features: int = 500_000
    encoder_products: int = 1
    has_kernels: bool = True

    @property
    def widths(self) -> tuple[int, ...]:
        """d_in + d_out of each SAE."""
        width, ends = self.shape.width, self.targets or self.sites
        return tuple(width(a) + width(b) for a, b in zip(self.sites, ends, strict=True))

    @property
    def row_bytes(self) -> int:
        """Bytes of one token's stored activations."""
        kinds = 1 + self.sae.needs_gradient
        return kinds * STORED * sum(map(self.shape.width, {*self.sites, *self.targets}))

    @property
    def n_steps(self) -> int:
        """Optimizer steps of each SAE."""
        return -(-self.n_tokens // self.batch_size)

    @property
    def k(self) -> int:
        """Codes per row."""
        return math.ceil(self.sae.sparsity.k or GUESSED_K)


def work(
    shape: ModelShape,
    sites: Sequence[str],
    sae: AbstractSAEConfig,
    n_tokens: int,
    targets: Sequence[str] = (),
    **more: Any,  # noqa: ANN401 - other fields of Work
) -> Work:
    """The work of training this SAE, with what its variant says of its encoder and its step.

    Raises:
        UsageError: the variant's cost is not known, or it cannot be a transcoder.
    """
    if sae.fitted_by is not None:
        raise UsageError(
            f"A {sae.variant} SAE is fitted by {sae.fitted_by}, whose time no law here tells; "
            "`saelab train` says what such a training takes before it starts."
        )
    sae.check()
    with torch.device("meta"):
        built = sae.build(shape.width(sites[0]))
    if targets and len(targets) != len(sites):
        raise UsageError(
            f"{len(sites)} sites and {len(targets)} target sites; a transcoder reads one site and "
            "reconstructs one."
        )
    if targets:
        check_transcoder(sae)
    return Work(
        shape,
        tuple(sites),
        sae,
        n_tokens,
        targets=tuple(targets),
        encoder_products=built.encoder_products,
        has_kernels=not targets and not isinstance(built.fused_rule(), str),
        **more,
    )


@dataclass(frozen=True)
class Fleet:
    """The machines.

    Attributes:
        per_host: GPUs of a host.
        disk: free bytes for a store; None: not limited.
    """

    pace: Pace
    gpus: int = 1
    per_host: int = 8
    disk: int | None = None

    @property
    def usable(self) -> float:
        """Bytes of a GPU's memory that may be planned with."""
        return USABLE * self.pace.memory

    def hosts(self, gpus: int) -> int:
        """Hosts that so many GPUs are on."""
        return -(-gpus // self.per_host)


@dataclass
class Way:
    """One way to go the road.

    Attributes:
        shards: GPUs that share one SAE.
        memory: bytes on the fullest GPU, by part.
        disk: bytes of the store.
        traffic: bytes in all, by place.
        seconds: wall-clock time, by stage.
        parts: seconds of one SAE's step, by part.
        gpus: GPUs that it uses.
        problem: why it cannot be gone; None: it can.
    """

    name: str
    shards: int = 1
    memory: dict[str, int] = field(default_factory=dict)
    disk: int = 0
    traffic: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    gpus: int = 1
    problem: str | None = None

    @property
    def wall(self) -> float:
        """Seconds from start to end."""
        return sum(self.seconds.values())

    @property
    def gpu_hours(self) -> float:
        """Hours of all GPUs that it uses."""
        return self.gpus * self.wall / 3600

    @property
    def limit(self) -> str:
        """The stage that takes longest; of a training's steps also their largest part."""
        stage = max(self.seconds, key=lambda name: self.seconds[name])
        if stage != "steps":
            return stage
        return f"steps: {max(self.parts, key=lambda name: self.parts[name])}"


def step_parts(job: Work, fleet: Fleet, shards: int, width: int) -> dict[str, float]:
    """Seconds of a step of one SAE of `width` = d_in + d_out that so many GPUs share, by part.

    Each GPU has its share of the latents and of the codes; the GPUs tell each other their
    candidates, and sum their parts of the reconstruction in a ring.
    """
    pace, d, m = fleet.pace, width // 2, -(-job.sae.d_sae // shards)
    size = StepShape(d, m, -(-job.k // shards), job.batch_size)
    by_kernels = pace.fused and job.has_kernels and (shards == 1 or SHARED_BY_KERNELS)
    factor = pace.factor(job.sae.variant, fused=by_kernels)
    if not job.half and pace.fused:
        factor *= (
            2.0 if not by_kernels else 5.0
        )  # Measured on an H100: 9.55 ms where bf16 has 1.66.
    found = {name: factor * t for name, t in pace.rates.parts(size, job.encoder_products).items()}
    if shards > 1:
        sums = 2 * (shards - 1) / shards * job.batch_size * d * 4
        told = (shards - 1) * job.batch_size * job.k * CANDIDATE / shards
        hosts = fleet.hosts(shards)
        found["exchange"] = sum(
            pace.exchange(n, hosts=hosts, per_host=fleet.per_host) for n in (sums, told)
        )
    return found


def pass_seconds(job: Work, pace: Pace, sites: Sequence[str]) -> float:
    """Seconds per token of a pass that stops after the last of these sites; without any, of all."""
    layers = job.shape.layers_to(sites) if sites else job.shape.n_layers
    rate = pace.forward * pace.rates.matmul * (1.0 if job.half or not pace.fused else 0.25)
    return job.shape.operations(layers, job.length, logits=not sites) / rate


def model_memory(job: Work) -> dict[str, int]:
    """Bytes of the model and of a forward pass on one GPU."""
    passes = pass_bytes(job.shape, FORWARD_CONTEXTS, job.length)
    size = 2 if job.half else 4
    return {"language model": size * job.shape.weights, "forward pass": passes}


def sae_memory(job: Work, pace: Pace, shards: int, n: int = 1) -> dict[str, int]:
    """Bytes on one GPU of `n` SAEs of the widest site that so many GPUs share each."""
    width, m = max(job.widths), -(-job.sae.d_sae // shards)
    fused = pace.fused and job.has_kernels and (shards == 1 or SHARED_BY_KERNELS)
    return {
        "weights and moments": n * state_bytes(width * m, fused=fused),
        "step": step_bytes(job.batch_size, m, width, fused=fused),
        "code and kept memory": AT_REST,
    }


def sharings(gpus: int) -> Iterator[int]:
    """1, 2, 4, ... GPUs, as many as there are."""
    shards = 1
    while shards <= gpus:
        yield shards
        shards *= 2


def fewest(job: Work, pace: Pace, most: int = 2**20) -> int | None:
    """The fewest GPUs that hold one SAE together, from a store; None if `most` do not."""
    fits = (
        g for g in sharings(most) if sum(sae_memory(job, pace, g).values()) <= USABLE * pace.memory
    )
    return next(fits, None)


def too_large(job: Work, fleet: Fleet, memory: dict[str, int]) -> str:
    """Why this does not fit on a GPU, as a sentence, with the fewest GPUs that would hold it."""
    name = max(memory, key=lambda part: memory[part])
    need = fewest(job, fleet.pace)
    shared = f"from a store, {need} such GPUs hold an SAE" if need else "no number of them holds it"
    return (
        f"a GPU needs {in_bytes(sum(memory.values()))} and has "
        f"{in_bytes(int(fleet.usable))}; the largest part is {name}; {shared}"
    )

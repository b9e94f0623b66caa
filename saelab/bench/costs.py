"""What harvesting, training and measuring cost: memory and time of each, on any number of GPUs.

Laws, each in one place: a step is `Pace.step_parts`, split over the GPUs that share an SAE, and an
exchange; a pass is `ModelShape.operations`; memory is that of `saelab.training.plan`,
`saelab.activations.live` and `saelab.lm.cost`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from saelab.activations import POOL_ROWS
from saelab.activations.format import Dtype
from saelab.bench.machine import StepShape
from saelab.bench.pace import USABLE, Pace
from saelab.config import UsageError
from saelab.console import in_bytes
from saelab.kernels.exchange import averaged, received
from saelab.kernels.rules import FusedRule
from saelab.lm.cost import pass_bytes
from saelab.lm.replay import KEPT
from saelab.lm.shape import ModelShape
from saelab.sae.base import AbstractSAEConfig
from saelab.sae.transcoder import make_transcoder
from saelab.shard import LatentShard
from saelab.training.plan import AT_REST, GRADS, one_matrix, pursuit_bytes, state_bytes, step_bytes

GUESSED_K = 64
"""Codes per row of variants that have no k."""
CANDIDATE = 12
"""Bytes of a code that GPUs which share an SAE tell each other without kernels: size and place."""
CONTEXTS = 32
"""Contexts of a forward pass."""
STORED = 2
"""Bytes of a stored number."""
PREDICTED_BYTES = 12
"""Bytes per latent and position while codes are measured: three float32 numbers."""

Bytes = dict[str, int]


@dataclass(frozen=True)
class Work:
    """What is to be done: an SAE at every site, or a transcoder from every site to its target.

    Attributes:
        targets: the reconstructed sites; empty: the sites themselves.
        length: positions per context.
        half: whether the model and the large products are in bfloat16.
        n_evaluated, n_features: tokens that evaluate and features read.
        products: products of the encoder with its input.
        rule: the variant's step where there are kernels; None if they do not know it.
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
    products: int = 1
    rule: FusedRule | None = None
    replicas: int = 1
    moments: Dtype = "float32"

    @property
    def kernels(self) -> bool:
        """Whether the variant's step is by kernels alone where there are kernels."""
        return self.rule is not None

    @property
    def widths(self) -> tuple[int, ...]:
        """d_in + d_out of each SAE."""
        width, ends = self.shape.width, self.targets or self.sites
        return tuple(width(a) + width(b) for a, b in zip(self.sites, ends, strict=True))

    @property
    def hooks(self) -> tuple[str, ...]:
        """All sites that are read."""
        return tuple(dict.fromkeys([*self.sites, *self.targets]))

    @property
    def row_bytes(self) -> int:
        """Bytes of one token's stored activations."""
        return STORED * (1 + self.sae.needs_gradient) * sum(map(self.shape.width, self.hooks))

    @property
    def read_bytes(self) -> int:
        """Bytes of one token that all trainings read."""
        read = map(self.shape.width, [*self.sites, *self.targets])
        return STORED * (1 + self.sae.needs_gradient) * sum(read)

    @property
    def number(self) -> int:
        """Bytes of a number of the model."""
        return 2 if self.half else 4

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
        UsageError: the variant's cost is not known, it cannot be a transcoder, or a site is there
            twice.
    """
    if sae.fitted_by is not None:
        raise UsageError(
            f"A {sae.variant} SAE is fitted by {sae.fitted_by}, whose time no law here tells; "
            "`saelab train` says what such a training takes before it starts."
        )
    if sae.joint_problem is None:
        raise UsageError(
            f"A {sae.variant} SAE reads several sites at once, whose cost no law here tells; "
            "`saelab train` says what such a training takes before it starts."
        )
    sae.check()
    if targets and len(targets) != len(sites):
        raise UsageError(
            f"{len(sites)} sites and {len(targets)} target sites; a transcoder reads one site and "
            "reconstructs one."
        )
    pairs = list(zip(sites, targets or sites, strict=True))
    if twice := [site for i, (site, target) in enumerate(pairs) if (site, target) in pairs[:i]]:
        raise UsageError(f"Name each site once; {twice[0]} is named twice.")
    with torch.device("meta"):
        built = sae.build(shape.width(sites[0]))
        if targets:
            make_transcoder(built, shape.width(targets[0]))
    rule = built.fused_rule()
    return Work(
        shape,
        tuple(sites),
        sae,
        n_tokens,
        targets=tuple(targets),
        products=built.encoder_products,
        rule=None if isinstance(rule, str) else rule,
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

    def holds(self, memory: Bytes) -> bool:
        """Whether a GPU has so much memory."""
        return sum(memory.values()) <= self.usable

    def place(self, gpus: int) -> str:
        """What lies between so many GPUs."""
        return "between GPUs" if self.hosts(gpus) == 1 else "between hosts"


def step_parts(job: Work, fleet: Fleet, shards: int, width: int) -> dict[str, float]:
    """Seconds of a step of one SAE of `width` = d_in + d_out that so many GPUs share, by part.

    Each GPU has its share of the latents and of the codes. What the GPUs tell each other is the law
    of `saelab.kernels.exchange.received`.
    """
    pace, d, m = fleet.pace, width // 2, -(-job.sae.d_sae // shards)
    size = StepShape(d, m, -(-job.k // shards), job.batch_size, moments=job.moments)
    fused = pace.kernels and job.kernels
    found = pace.step_parts(
        size,
        job.sae.variant,
        products=job.products,
        fused=fused,
        half=job.half,
        pursues=job.rule is not None and job.rule.pursues,
    )
    if shards > 1:
        hosts, per_host = fleet.hosts(shards), fleet.per_host
        told = exchanged(job, shards, width, fused=fused)
        found["exchange"] = sum(pace.exchange(n, hosts=hosts, per_host=per_host) for n in told)
    if (count := job.replicas) > 1:  # A ring through each GPU's own link.
        n, hosts = averaged(m, d, width - d, count), fleet.hosts(count * shards)
        found["replicas' gradients"] = pace.exchange(n, hosts=hosts, per_host=1)
    return found


def exchanged(job: Work, shards: int, width: int, *, fused: bool) -> list[int]:
    """Bytes that each of `shards` GPUs receives in each exchange of a step."""
    d, batch, shard = width // 2, job.batch_size, LatentShard(0, shards, job.sae.d_sae)
    if fused and job.rule is not None:
        return received(job.rule, shard, batch, d, d, half=job.half)
    sums = 2 * (shards - 1) * batch * d * 4 // shards
    return [sums, (shards - 1) * batch * min(job.k, shard.most) * CANDIDATE]


def pass_seconds(job: Work, pace: Pace, sites: Sequence[str]) -> float:
    """Seconds per token of a pass that stops after the last of these sites; without any, of all."""
    layers = job.shape.layers_to(sites) if sites else job.shape.n_layers
    rate = pace.forward * pace.rates.matmul / (1.0 if job.half else pace.single)
    return job.shape.operations(layers, job.length, logits=not sites) / rate


def model_memory(job: Work, contexts: int = CONTEXTS) -> Bytes:
    """Bytes of the model and of a forward pass on one GPU."""
    passes = pass_bytes(job.shape, contexts, job.length)
    return {"language model": job.number * job.shape.weights, "forward pass": passes}


def live_memory(job: Work, own: int, every: int, gpus: int) -> Bytes:
    """Bytes of live activations on a GPU with `own` SAEs, of `every` that a pass feeds."""
    widest, size = max(job.widths) // (1 if job.targets else 2), job.number
    captured = (KEPT + (2 if gpus == 1 else 4)) * CONTEXTS * job.length * every * widest * size
    batch = 8 * job.batch_size * own * widest
    pool = POOL_ROWS * own * widest * size
    return {"shuffled rows": pool, "rows of a pass": max(captured, batch)}


def sae_memory(job: Work, pace: Pace, shards: int, n: int = 1) -> Bytes:
    """Bytes on one GPU of `n` SAEs of the widest site that so many GPUs share each."""
    width, m, fused = max(job.widths), -(-job.sae.d_sae // shards), pace.kernels and job.kernels
    rule, batch = job.rule if fused else None, job.batch_size
    held = state_bytes(one_matrix(rule, width) * m, fused=fused, moments=job.moments)
    beside = n * pursuit_bytes(rule, batch, m, width // 2, job.number)
    # Every SAE that kernels train keeps its pre-activations for itself.
    kept = (n - 1) * fused * job.number * batch * m
    return {
        "weights and moments": n * held,
        **({"stored gradients": GRADS * width * m} if fused and job.replicas > 1 else {}),
        "step": kept + beside + step_bytes(batch, m, width, fused=fused),
        "code and kept memory": AT_REST,
    }


def measuring_memory(job: Work) -> Bytes:
    """Bytes on the one device where evaluate and features hold the model and a whole SAE.

    With one context per pass, the fewest.
    """
    weights = 4 * max(job.widths) * job.sae.d_sae
    codes = PREDICTED_BYTES * job.length * job.sae.d_sae
    return model_memory(job, 1) | {"SAE": weights, "codes": codes, "code and kept memory": AT_REST}


def sharings(job: Work, gpus: int) -> Iterator[int]:
    """1, 2, 4, ... GPUs, as many as there are; 1 alone if no processes share such an SAE."""
    shards = 1
    while shards <= gpus and (shards == 1 or job.sae.spread_problem is None):
        yield shards
        shards *= 2


def fewest(job: Work, fleet: Fleet, most: int) -> int | None:
    """The fewest GPUs, at most so many, that hold one SAE together; None: no number does."""
    fits = (g for g in sharings(job, most) if fleet.holds(sae_memory(job, fleet.pace, g)))
    return next(fits, None)


def too_large(fleet: Fleet, memory: Bytes) -> str:
    """Why this does not fit on a GPU, as half a sentence."""
    name = max(memory, key=lambda part: memory[part])
    need, room = in_bytes(sum(memory.values())), in_bytes(int(fleet.usable))
    return f"a GPU needs {need} and has {room}; the largest part is {name}"

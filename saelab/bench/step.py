"""The time of one training step, beside the machine's floor and a step in plain torch."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.bench.machine import DenseStep, Rates, StepShape, times
from saelab.config import UsageError
from saelab.console import in_bytes
from saelab.kernels.rules import FusedRule
from saelab.resources import free_on
from saelab.sae.context import LossContext
from saelab.sae.spread import keep_shard
from saelab.sae.transcoder import check_transcoder
from saelab.sae.variants import sized
from saelab.training.config import TrainConfig
from saelab.training.fused_steps import FusedSteps
from saelab.training.objectives import Local
from saelab.training.steps import Steps, choose_steps
from saelab.training.together import Together
from saelab.training.untrained import untrained_sae
from saelab.types import ActivationBatch

BATCHES = 4
LR = 1e-4
FAINT = 0.1
"""The share of their norm that dead latents' encoder rows keep."""


@dataclass(frozen=True)
class StepTimes:
    """The times of one step.

    Attributes:
        variant: name of the variant, and whether the SAE is a transcoder.
        way: the kind of step that `saelab train` uses: fused or autograd.
        seconds: median duration of a step.
        peak_bytes: peak of allocated device memory, weights included; 0 if unknown.
        floor: least seconds for its dense encoder and Adam at the machine's measured rates.
        dense: median seconds and peak bytes of a TopK step in plain torch, if measured.
        stages: seconds of each part of a fused step by itself.
    """

    shape: StepShape
    variant: str
    way: str
    seconds: float
    peak_bytes: int
    floor: float
    dense: tuple[float, int] | None = None
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """The step's time over the floor."""
        return self.seconds / self.floor

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of the steps alone, with activations in memory."""
        return self.shape.batch / self.seconds


def time_step(
    config: TrainConfig,
    shape: StepShape,
    rates: Rates,
    device: torch.device,
    *,
    steps: int = 30,
    together: Together | None = None,
) -> StepTimes:
    """Time what `saelab train` does with a batch, on random activations in device memory.

    The first steps, which compile kernels, are not counted. Several processes hold the SAE
    `together`, and its replicas share out the rows.

    Raises:
        UsageError: so many processes cannot train such an SAE together, or latents are to be dead
            in a step that is not fused or has no AuxK.
    """
    sae = untrained_sae(config, shape.d_in, shape.d_in, device=device)
    together = together or Together()
    ranks, replicas = together.ranks, together.replicas
    part = replace(shape, batch=shape.batch // replicas.count)
    batches = _batches(part, device, targets=config.target_site is not None)
    sae.initialise(batches[0].x[:2048])
    if ranks.world > 1:
        keep_shard(sae, ranks.rank, ranks.world, replicas)
    sae.cpu()  # As `saelab train` keeps it: a fused step has weights of its own.
    way = choose_steps(config, sae, device, float(shape.d_in))
    if shape.dead:
        _let_die(way, shape.dead, config.silence)
    context = LossContext(float(shape.d_in), None, config.n_steps // 2, config.n_steps)
    objective, taken = Local(), [0]

    def run() -> None:
        taken[0] += 1
        batch = batches[taken[0] % BATCHES]
        way.optimizer_step(batch, objective, context, lr=LR, scale=1.0)

    seconds, peak = _measure(run, steps, device)
    rule = sae.fused_rule()
    one = isinstance(rule, FusedRule) and rule.has_one_matrix
    # Of a pursuit's products a Gram matrix can stand for all but the first.
    pursues = isinstance(rule, FusedRule) and rule.pursues
    floor = rates.floor(shape, 1 if pursues else sae.encoder_products, 1 if one else 2)
    # What several processes exchange has begun in one part and ends in another.
    stages = _stages(way, device, steps) if ranks.world == 1 else {}
    kind = "skip transcoder" if config.skip else "transcoder"
    name = config.sae.variant if config.target_site is None else f"{config.sae.variant} {kind}"
    return StepTimes(shape, name, way.name, seconds, peak, floor, stages=stages)


def time_dense(shape: StepShape, device: torch.device, *, steps: int = 20) -> tuple[float, int]:
    """Median seconds and peak bytes of a TopK step in plain torch: compiled, bfloat16 autocast."""
    step = DenseStep(shape, device, total_variance=1.0, compiled=device.type == "cuda")
    batches, taken = _batches(shape, device), [0]

    def run() -> None:
        taken[0] += 1
        step(batches[taken[0] % BATCHES].x)

    try:
        return _measure(run, steps, device)
    finally:
        # The compiled step would keep the weights in memory and count in the next measurement.
        step.forget()


def step_config(
    variant: str,
    shape: StepShape,
    *,
    precision: str = "bfloat16",
    clip_norm: float | None = None,
    transcoder: bool = False,
    skip: bool = False,
) -> TrainConfig:
    """What `time_step` trains: this variant with its defaults, mid-run.

    Raises:
        UsageError: the variant cannot be a transcoder, or `skip` is for transcoders.
    """
    config = TrainConfig.model_validate(
        {
            "sae": sized(variant, shape.d_sae, shape.k),
            "activations": Path(),
            "site": "reads",
            "target_site": "writes" if transcoder else None,
            "skip": skip,
            "n_tokens": 10_000 * shape.batch,
            "batch_size": shape.batch,
            "precision": precision,
            "clip_norm": clip_norm,
            "moments": shape.moments,
            "dead_after": 10**12,
        }
    )
    if transcoder:
        check_transcoder(config.sae)
    return config.of(config.sae)


def check_fits(shape: StepShape, device: torch.device) -> None:
    """Refuse a size that this device's free memory cannot hold, before anything is timed.

    Counted is what every step has: one matrix of weights with Adam's two moments, and the batches
    with their gradients, in float32.

    Raises:
        UsageError: this alone needs more than is free.
    """
    needed = 12 * shape.d_in * shape.d_sae + 8 * BATCHES * shape.batch * shape.d_in
    if needed > (free := free_on(device)):
        raise UsageError(
            f"A step of {shape} needs at least {in_bytes(needed)}, and {in_bytes(free)} of memory "
            f"is free on {device}; choose a smaller size."
        )


def _batches(
    shape: StepShape, device: torch.device, *, targets: bool = False
) -> list[ActivationBatch]:
    """Several batches, so that no batch is found in a cache."""
    generator = torch.Generator(device).manual_seed(1)

    def draw() -> Float[Tensor, "batch d_in"]:
        return torch.randn(shape.batch, shape.d_in, device=device, generator=generator)

    return [
        ActivationBatch(draw(), draw() if targets else None, grad=draw()) for _ in range(BATCHES)
    ]


def _let_die(way: Steps, share: float, silence: int) -> None:
    """Let a share of the latents, evenly spread, be silent for so long.

    Their encoder's rows are made so faint that none fires, while half of the pre-activations stay
    positive, as AuxK needs them.
    """
    if not isinstance(way, FusedSteps) or way.step.rules.aux is None:
        raise UsageError(
            f"{share:.3g} of the latents cannot be dead in a step without AuxK, or by {way.name}: "
            "take the fused step of a variant with AuxK."
        )
    assert not way.step.rules.sae.has_one_matrix, "Fainter rows would be fainter atoms."
    weights = way.step.weights
    m = len(weights.since_fired)
    n = max(1, round(share * m))
    latents = torch.arange(n, device=weights.since_fired.device) * m // n
    weights.since_fired[latents] = silence
    for rows in (weights.enc.value, weights.enc.copy):
        rows[latents] *= FAINT


def _measure(run: Callable[[], None], steps: int, device: torch.device) -> tuple[float, int]:
    times(run, steps=max(1, min(5, steps // 4)), device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    median = statistics.median(times(run, steps=steps, device=device))
    return median, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _stages(way: Steps, device: torch.device, steps: int) -> dict[str, float]:
    """The parts of a fused step, timed alone; in the graph some of them overlap."""
    if not isinstance(way, FusedSteps):
        return {}
    return {
        name: statistics.median(times(run, steps=steps, device=device))
        for name, run in way.step.stages().items()
    }

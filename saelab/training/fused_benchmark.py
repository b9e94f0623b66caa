"""The fused step beside what the machine allows and what plain torch needs, in one process."""

import statistics
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.kernels.benchmark import DenseStep, Rates, StepShape, times
from saelab.sae.topk import TopK, TopKConfig
from saelab.training.fused import FusedOptions, FusedStep

GOAL = 1.25
"""How many times the floor a step may take."""


@dataclass(frozen=True)
class StepTimes:
    """A step's time by several ways.

    Attributes:
        seconds: the median of the fused step.
        peak_bytes: most device memory that the fused step had allocated, weights included; 0
            where that is not known.
        floor: seconds that the machine's own rates allow.
        dense: median seconds and peak bytes of plain torch, if measured.
    """

    shape: StepShape
    seconds: float
    peak_bytes: int
    floor: float
    dense: tuple[float, int] | None

    @property
    def ratio(self) -> float:
        """The fused step over the floor; at most `GOAL` is the aim."""
        return self.seconds / self.floor


def compare_step(
    shape: StepShape,
    rates: Rates,
    device: torch.device,
    *,
    steps: int = 30,
    warm_up: int = 5,
    dense: bool = True,
) -> StepTimes:
    """Time a TopK step on activations that are in the device's memory, after `warm_up` steps.

    `dense` times compiled plain torch too (bfloat16 autocast, fused Adam).
    """
    xs = _activations(shape, device)
    fused = _measure(_fused(shape, device), xs, steps, warm_up)
    plain = None
    if dense:
        plain = _measure(
            DenseStep(shape, device, total_variance=1.0, compiled=True), xs, steps, warm_up
        )
    return StepTimes(shape, *fused, rates.floor(shape), plain)


def _fused(shape: StepShape, device: torch.device) -> FusedStep:
    config = TopKConfig(d_sae=shape.d_sae, k=shape.k, aux_coefficient=0)
    with torch.device(device):
        sae = TopK(config, shape.d_in, torch.Generator(device).manual_seed(0))
    step = FusedStep(sae, FusedOptions(shape.batch, float(shape.d_in)))
    step.set_lr(1e-4)
    return step


def _activations(shape: StepShape, device: torch.device) -> list[Float[Tensor, "batch d_in"]]:
    """Four batches, so that none is found in a cache."""
    generator = torch.Generator(device).manual_seed(1)
    size = (shape.batch, shape.d_in)
    return [torch.randn(size, device=device, generator=generator).bfloat16() for _ in range(4)]


def _measure(
    step: FusedStep | DenseStep, xs: list[Float[Tensor, "batch d_in"]], steps: int, warm_up: int
) -> tuple[float, int]:
    device, taken = xs[0].device, [0]

    def run() -> None:
        taken[0] += 1
        step(xs[taken[0] % len(xs)])

    times(run, steps=warm_up, device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    median = statistics.median(times(run, steps=steps, device=device))
    return median, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0

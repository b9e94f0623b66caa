"""How often latents fire, and how many fire at once."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.evaluation.inputs import Inputs
from saelab.evaluation.measurement import Line, Measurement, Streamed
from saelab.evaluation.zipf import fit_zipf
from saelab.types import SparseCodes

BINS_PER_DECADE = 4
DENSE = 0.1
"""A latent that fires on more than this share of the tokens is dense."""


@dataclass(frozen=True)
class Density:
    """Firing frequencies, after arXiv 2408.05147, section 4 (figure of log10 frequencies).

    The frequency of latent i is (1/N) sum_n [z_ni != 0]; their sum is the mean L0. Negative firings
    of signed codes count like positive ones.

    Attributes:
        n_tokens: N.
        frequency: firing frequency of each latent.
        negative: share of negative firings of each latent; 0 for a dead one.
        log10_edges: bin edges of the histogram over latents, from one firing in N tokens to always.
        counts: latents in each bin, without dead ones.
        dead, dense: shares of all latents that never fire, and that fire on more than 10 %.
        mean_l0: mean number of active latents.
        l0_counts: tokens with 0, 1, 2, ... active latents.
        l0_quantiles: the 5 %, 25 %, 50 %, 75 % and 95 % quantiles over tokens.
    """

    n_tokens: int
    frequency: list[float]
    negative: list[float]
    log10_edges: list[float]
    counts: list[int]
    dead: float
    dense: float
    mean_l0: float
    l0_counts: list[int]
    l0_quantiles: list[float]

    @property
    def signed(self) -> bool:
        """Whether any firing was negative."""
        return any(self.negative)


class DensityCounts:
    """Density counts of any number of batches; the figures do not depend on the batching."""

    def __init__(self, d_sae: int, device: torch.device) -> None:
        self.n = 0
        self.fired, self.negative = (
            torch.zeros(d_sae, dtype=torch.int64, device=device) for _ in range(2)
        )
        self.l0 = torch.zeros(1, dtype=torch.int64, device=device)

    def update(self, codes: SparseCodes) -> None:
        """Add a batch."""
        on = codes.active
        self.n += len(codes)
        self.fired += codes.firing_counts()
        below = codes.indices[codes.values < 0]
        self.negative += torch.bincount(below, minlength=codes.d_sae)
        per_row = torch.bincount(codes.rows()[on], minlength=len(codes))
        found = torch.bincount(per_row, minlength=len(self.l0))
        found[: len(self.l0)] += self.l0
        self.l0 = found

    def results(self) -> Density:
        """The figures of the added rows; there must be at least one row."""
        frequency = self.fired.double() / self.n
        edges, counts = log_histogram(self.fired, self.n)
        return Density(
            n_tokens=self.n,
            frequency=frequency.tolist(),
            negative=(self.negative.double() / self.fired.clamp_min(1)).tolist(),
            log10_edges=edges,
            counts=counts,
            dead=float((self.fired == 0).double().mean()),
            dense=float((frequency > DENSE).double().mean()),
            mean_l0=float(frequency.sum()),
            l0_counts=self.l0.tolist(),
            l0_quantiles=[_quantile(self.l0, q) for q in (0.05, 0.25, 0.5, 0.75, 0.95)],
        )


def log_histogram(fired: Int[Tensor, " d_sae"], n: int) -> tuple[list[float], list[int]]:
    """Bin edges per quarter decade up to 1, from below 1/n, and the number of living latents.

    A latent on an edge belongs to the bin above; one that always fires, to the last bin.
    """
    alive = fired[fired > 0].cpu()
    lowest = -_decades(n)
    n_bins = -lowest * BINS_PER_DECADE
    edges = torch.linspace(lowest, 0, n_bins + 1, dtype=torch.float64)
    place = torch.bucketize((alive.double() / n).log10(), edges, right=True) - 1
    counts = torch.bincount(place.clamp(0, n_bins - 1), minlength=n_bins)
    return edges.tolist(), counts.tolist()


def _decades(n: int) -> int:
    """The least number of decades, at least one, that reach from 1/n to 1."""
    return len(str(max(1, n - 1)))


def _quantile(counts: Int[Tensor, " value"], q: float) -> float:
    """The smallest value that is not exceeded by a share `q` of the counts."""
    reached = counts.cumsum(0).double() >= q * float(counts.sum())
    return float(reached.int().argmax())


def _lines(d: Density) -> Iterator[Line]:
    low, _, middle, _, high = d.l0_quantiles
    yield "L0", f"{middle:g}", f"median over tokens; 90 % of them between {low:g} and {high:g}"
    yield "dead", f"{d.dead:.2%}", f"latents silent on {d.n_tokens} tokens"
    yield "dense", f"{d.dense:.2%}", "latents that fire on more than 10 % of the tokens"
    law = fit_zipf(d.frequency)
    if law is not None:
        found = f"(rank + {law.shift:.3g})^-{law.exponent:.2f}"
        yield "density", found, f"the Zipf-Mandelbrot law that fits best, R² {law.r_squared:.2f}"
    if d.signed:
        both = sum(0 < share < 1 for share in d.negative)
        yield "both signs", f"{both} of {len(d.negative)}", "latents that fire with either sign"


def _counts(inputs: Inputs) -> Streamed:
    counts = DensityCounts(inputs.sae.d_sae, inputs.device)
    return Streamed(lambda batch: counts.update(batch.rows.codes), counts.results)


DENSITY = Measurement(
    "density", "How are the latents used?", _lines, stream=_counts, result=Density, suite="core"
)

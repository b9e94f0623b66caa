"""Exact figures of each latent's firings: moments, histogram, strata."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int
from numpy import ndarray

from saelab.analysis.features.firings import Firings
from saelab.analysis.histogram import histograms, ranges


@dataclass(frozen=True)
class Strata:
    """Each latent's firings divided by size into parts of nearly equal number.

    Attributes:
        edges: exact quantiles of each latent's |value|: firings of rank floor(n s / S), and the
            largest; zero for a latent that never fires.
        group: `latent * n_strata + stratum` of each firing; its stratum is the number of inner
            edges that it reaches.
        population: the number of firings in each stratum.
    """

    edges: Float32[ndarray, "latent edge"]
    group: Int[ndarray, " event"]
    population: Int[ndarray, "latent stratum"]

    @classmethod
    def of(cls, firings: Firings, n_strata: int) -> "Strata":
        """The strata of these firings."""
        edges = _edges(firings, n_strata)
        size, stratum = np.abs(firings.value), np.zeros(len(firings), dtype=np.int32)
        for inner in edges[:, 1:-1].T:
            stratum += size >= np.ascontiguousarray(inner)[firings.latent]
        group = firings.latent * n_strata + stratum
        population = np.bincount(group, minlength=firings.n_latents * n_strata)
        return cls(edges, group, population.reshape(firings.n_latents, n_strata))


def figures(firings: Firings, strata: Strata) -> dict[str, ndarray]:
    """The datasets of the groups latent, histogram and strata."""
    largest = strata.edges[:, -1]
    span = ranges(largest)
    negative = firings.take(np.flatnonzero(firings.value < 0))
    return {
        "latent/n_fired": firings.counts,
        "latent/n_negative": negative.counts,
        "latent/max": largest,
        **moments(firings),
        "histogram/range": span,
        "histogram/counts": histograms(firings.latent, firings.value, span),
        "strata/edges": strata.edges,
        "strata/population": strata.population.astype(np.uint32),
    }


def moments(firings: Firings) -> dict[str, Float32[ndarray, " latent"]]:
    """Mean |a| over the firings; E[a^2], skew and kurtosis about zero over all tokens.

    Skew is E[a^3] / E[a^2]^1.5 and kurtosis E[a^4] / E[a^2]^2, as OpenAI's viewer defines them
    (arXiv 2406.04093, released code); both are 0 for a silent latent.
    """
    value = firings.value.astype(np.float64)
    n_rows = max(1, len(firings.text.place))

    def mean(power: Float[ndarray, " event"]) -> Float[ndarray, " latent"]:
        return firings.sums(power) / n_rows

    # By products: a power is a call for each number.
    square = value * value
    second, third, fourth = mean(square), mean(square * value), mean(square * square)
    safe = np.where(second > 0, second, 1.0)
    columns = {
        "mean": firings.sums(np.abs(value)) / np.maximum(1, firings.counts),
        "mean_square": second,
        "skew": third / safe**1.5,
        "kurtosis": fourth / safe**2,
    }
    return {f"latent/{name}": column.astype(np.float32) for name, column in columns.items()}


def _edges(firings: Firings, n_strata: int) -> Float32[ndarray, "latent edge"]:
    start, count = firings.begins[:-1, None], firings.counts[:, None]
    rank = count * np.arange(n_strata + 1) // n_strata
    place = start + np.minimum(rank, np.maximum(count - 1, 0))
    fires = np.broadcast_to(count > 0, place.shape)
    edges = np.zeros(place.shape, dtype=np.float32)
    edges[fires] = firings.ascending[place[fires]]
    return edges

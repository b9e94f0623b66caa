"""Exact figures of each latent's firings: moments, histogram, strata."""

import numpy as np
from jaxtyping import Float, Float32, Int
from numpy import ndarray

from saelab.analysis.features.firings import Firings, starts
from saelab.analysis.histogram import histograms, ranges


def figures(firings: Firings, n_strata: int) -> dict[str, ndarray]:
    """The datasets of the groups latent, histogram and strata."""
    size = np.abs(firings.value)
    edges = strata_edges(firings, size, n_strata)
    largest = edges[:, -1]
    span = ranges(largest)
    population = np.bincount(
        firings.latent * n_strata + strata_of(firings, size, edges),
        minlength=firings.n_latents * n_strata,
    )
    return {
        "latent/n_fired": firings.counts,
        "latent/n_negative": np.bincount(
            firings.latent[firings.value < 0], minlength=firings.n_latents
        ),
        "latent/max": largest,
        **moments(firings, size),
        "histogram/range": span,
        "histogram/counts": histograms(firings.latent, firings.value, span),
        "strata/edges": edges,
        "strata/population": population.astype(np.uint32).reshape(firings.n_latents, n_strata),
    }


def moments(firings: Firings, size: Float[ndarray, " event"]) -> dict[str, ndarray]:
    """Mean |a| over the firings; E[a^2], skew and kurtosis about zero over all tokens.

    Skew is E[a^3] / E[a^2]^1.5 and kurtosis E[a^4] / E[a^2]^2, as OpenAI's viewer defines them
    (arXiv 2406.04093, released code); both are 0 for a silent latent.
    """
    value = firings.value.astype(np.float64)
    n_rows = max(1, len(firings.text.place))

    def mean(power: Float[ndarray, " event"]) -> Float[ndarray, " latent"]:
        sums = np.bincount(firings.latent, weights=power, minlength=firings.n_latents)
        return sums / n_rows

    second, third, fourth = mean(value**2), mean(value**3), mean(value**4)
    safe = np.where(second > 0, second, 1.0)
    columns = {
        "mean": mean(size) * n_rows / np.maximum(1, firings.counts),
        "mean_square": second,
        "skew": third / safe**1.5,
        "kurtosis": fourth / safe**2,
    }
    return {f"latent/{name}": column.astype(np.float32) for name, column in columns.items()}


def strata_edges(
    firings: Firings, size: Float32[ndarray, " event"], n_strata: int
) -> Float32[ndarray, "latent edge"]:
    """Exact quantiles of each latent's |value|: firings of rank floor(n s / S), and the largest.

    They are zero for a latent that never fires.
    """
    start, count = starts(firings.counts)[:-1, None], firings.counts[:, None]
    rank = count * np.arange(n_strata + 1) // n_strata
    place = start + np.minimum(rank, np.maximum(count - 1, 0))
    fires = np.broadcast_to(count > 0, place.shape)
    edges = np.zeros(place.shape, dtype=np.float32)
    edges[fires] = firings.ascending[place[fires]]
    return edges


def strata_of(
    firings: Firings, size: Float32[ndarray, " event"], edges: Float32[ndarray, "latent edge"]
) -> Int[ndarray, " event"]:
    """The stratum of each firing: the number of inner edges that it reaches."""
    stratum = np.zeros(len(size), dtype=np.int64)
    for inner in edges[:, 1:-1].T:
        stratum += size >= inner[firings.latent]
    return stratum

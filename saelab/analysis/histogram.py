"""Histograms of every latent's activations, in one pass and fixed memory."""

import numpy as np
from jaxtyping import Float, Int, UInt32
from numpy import ndarray

BINS_PER_SIDE = 64
"""A power of two, as are all ranges: then every bin edge is an exact floating-point number."""
FIRST_RANGE = 2.0**-10


class LatentHistograms:
    """One two-sided linear histogram per latent, whose range doubles when a value exceeds it.

    Doubling merges neighbouring bins, so counts stay exact; at the end the largest magnitude lies
    in the outer half of its latent's range. Zeros (silence) are not counted.
    """

    def __init__(self, d_sae: int) -> None:
        self.range: Float[ndarray, " d_sae"] = np.full(d_sae, FIRST_RANGE, dtype=np.float32)
        self.counts: UInt32[ndarray, "d_sae bin"] = np.zeros(
            (d_sae, 2 * BINS_PER_SIDE), dtype=np.uint32
        )

    def update(self, latent: Int[ndarray, " event"], value: Float[ndarray, " event"]) -> None:
        """Count the events' values."""
        self._widen(latent, value)
        scaled = value / self.range[latent] * BINS_PER_SIDE
        bins = np.clip(np.floor(scaled).astype(np.int64) + BINS_PER_SIDE, 0, 2 * BINS_PER_SIDE - 1)
        np.add.at(self.counts, (latent, bins), 1)

    def _widen(self, latent: Int[ndarray, " event"], value: Float[ndarray, " event"]) -> None:
        largest = np.zeros(len(self.range), dtype=np.float32)
        np.maximum.at(largest, latent, np.abs(value).astype(np.float32))
        while (narrow := np.flatnonzero(largest >= self.range)).size:
            self.counts[narrow] = _merged(self.counts[narrow])
            self.range[narrow] *= 2


def _merged(counts: UInt32[ndarray, "latent bin"]) -> UInt32[ndarray, "latent bin"]:
    pairs = counts.reshape(len(counts), BINS_PER_SIDE, 2).sum(axis=2)
    merged = np.zeros_like(counts)
    quarter = BINS_PER_SIDE // 2
    merged[:, quarter : quarter + BINS_PER_SIDE] = pairs
    return merged


def edges(value_range: float, n_bins: int = 2 * BINS_PER_SIDE) -> Float[ndarray, " edge"]:
    """The edges of `n_bins` bins from -range to +range."""
    return np.linspace(-value_range, value_range, n_bins + 1)

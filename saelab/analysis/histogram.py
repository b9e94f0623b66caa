"""Histograms of every latent's activations, with bin edges that floats represent exactly."""

import numpy as np
from jaxtyping import Float, Int, Integer, UInt32
from numpy import ndarray

BINS_PER_SIDE = 64
"""A power of two, like all ranges, so that floats represent every bin edge exactly."""
SMALLEST_RANGE = 2.0**-10


def ranges(largest: Float[ndarray, " d_sae"]) -> Float[ndarray, " d_sae"]:
    """For each largest magnitude, the next power of two above it."""
    _, exponent = np.frexp(np.maximum(largest, SMALLEST_RANGE / 2))
    return np.ldexp(1.0, exponent).astype(np.float32)


def histograms(
    latent: Int[ndarray, " event"],
    value: Float[ndarray, " event"],
    span: Float[ndarray, " d_sae"],
) -> UInt32[ndarray, "d_sae bin"]:
    """Counts of each latent's firings in bins from -span to +span.

    Zeros (silence) are not counted.
    """
    scaled = np.floor(value / span[latent] * BINS_PER_SIDE).astype(np.int64)
    n_bins = 2 * BINS_PER_SIDE
    place = latent * n_bins + scaled + BINS_PER_SIDE
    counts = np.bincount(place, minlength=len(span) * n_bins)
    return counts.astype(np.uint32).reshape(len(span), n_bins)


def edges(value_range: float, n_bins: int = 2 * BINS_PER_SIDE) -> Float[ndarray, " edge"]:
    """The edges of the bins: from -range to +range, or from 0 if one-sided."""
    low = -value_range if n_bins > BINS_PER_SIDE else 0.0
    return np.linspace(low, value_range, n_bins + 1)


def one_sided(counts: Integer[ndarray, "d_sae bin"]) -> Integer[ndarray, "d_sae kept"]:
    """The counts without the negative side, if it is empty for all latents."""
    return counts if counts[:, :BINS_PER_SIDE].any() else counts[:, BINS_PER_SIDE:]

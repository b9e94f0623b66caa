"""A summary of a unit's row norms: their distribution, and the rows with the largest norms."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64, Integer, UInt32

BINS_PER_OCTAVE = 16
LOWEST, HIGHEST = -48, 48
N_BINS = BINS_PER_OCTAVE * (HIGHEST - LOWEST)
"""Bin i holds norms from 2^(LOWEST + i / 16) on; the first bin also smaller ones, the last larger
ones."""
TAIL_SHARE = 32


def tail_size(rows: int) -> int:
    """The number of rows listed per unit: 1/32 of its rows, those with the largest norms."""
    return -(-rows // TAIL_SHARE)


@dataclass(frozen=True)
class NormRecord:
    """What a unit records about its rows' norms at one site.

    Attributes:
        norm_counts: rows in each of the `N_BINS` bins.
        tail_row: the rows with the `tail_size(R)` largest norms, counted from the unit's start.
        tail_norm: their norms, largest first; among equal norms the lower row is first.
    """

    norm_counts: UInt32[np.ndarray, " bin"]
    tail_row: UInt32[np.ndarray, " n"]
    tail_norm: Float32[np.ndarray, " n"]

    @classmethod
    def of(cls, norms: Float32[np.ndarray, " row"]) -> "NormRecord":
        """The record of rows with these norms."""
        counts = np.bincount(bins_of(norms), minlength=N_BINS).astype(np.uint32)
        n = tail_size(len(norms))
        # The n-th largest norm; of several rows with it, those of the lowest indices are listed.
        limit = np.partition(norms, len(norms) - n)[len(norms) - n]
        reaching = np.flatnonzero(norms >= limit)
        rows = reaching[np.argsort(-norms[reaching], kind="stable")][:n]
        return cls(counts, rows.astype(np.uint32), norms[rows])

    def problem(self, rows: int) -> str | None:
        """What is impossible in the record of a unit with this many rows; None if it is valid."""
        if int(self.norm_counts.sum(dtype=np.int64)) != rows:
            return "counts other norms than it has rows"
        if len(np.unique(self.tail_row)) < len(self.tail_row) or self.tail_row.max() >= rows:
            return "lists a row with a large norm twice, or one that it does not have"
        norms = self.tail_norm
        if not np.isfinite(norms).all() or (norms < 0).any() or (np.diff(norms) > 0).any():
            return "lists norms that do not fall, or are none"
        return None

    def differs(self, norms: Float32[np.ndarray, " row"], tolerance: float) -> bool:
        """Whether rows with these norms, up to a relative tolerance, contradict this record."""
        listed = norms[self.tail_row]
        rest = np.delete(norms, self.tail_row)
        below = np.cumsum(self.norm_counts.astype(np.int64))[:-1]
        edges = bin_edges()[1:-1]
        srt = np.sort(norms)
        low, high = (np.searchsorted(srt, edges * (1 + sign * tolerance)) for sign in (-1, 1))
        return bool(
            (np.abs(listed - self.tail_norm) > tolerance * listed).any()
            or (len(rest) and rest.max() > self.tail_norm[-1] * (1 + tolerance))
            or (below < low).any()
            or (below > high).any()
        )


def bins_of(norms: Float32[np.ndarray, " row"]) -> Int64[np.ndarray, " row"]:
    """The bin of each norm."""
    with np.errstate(divide="ignore"):
        place = np.floor((np.log2(norms.astype(np.float64)) - LOWEST) * BINS_PER_OCTAVE)
    return place.clip(0, N_BINS - 1).astype(np.int64)


def bin_edges() -> Float64[np.ndarray, " edge"]:
    """The lower edge of each bin, and the upper edge of the last."""
    return 2.0 ** (LOWEST + np.arange(N_BINS + 1) / BINS_PER_OCTAVE)


def median_norm(counts: Integer[np.ndarray, " bin"]) -> float:
    """The median of the counted norms, to 2.2 %: the middle of its bin on a log scale.

    0 if it lies below the bins, infinity if it lies above them.
    """
    total = np.cumsum(counts.astype(np.int64))
    place = int(np.searchsorted(total, (total[-1] + 1) // 2))
    if place in (0, N_BINS - 1):
        return float("inf") if place else 0.0
    return float(2.0 ** (LOWEST + (place + 0.5) / BINS_PER_OCTAVE))


def merged_counts(records: Sequence[NormRecord]) -> Int64[np.ndarray, " bin"]:
    """The counts of several units together."""
    total = np.zeros(N_BINS, dtype=np.int64)
    for record in records:
        total += record.norm_counts
    return total

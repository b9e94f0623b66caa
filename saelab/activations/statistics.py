"""Sums that give the mean and variance of any union of units."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

PIECE_NUMBERS = 2**20
"""Numbers that are converted to float64 at a time."""


@dataclass(frozen=True)
class ColumnSums:
    """Sums over rows, in float64, of the stored values.

    Attributes:
        n: number of rows.
        sum: sum of x.
        sum_sq: sum of x^2, per coordinate.
        max_abs: largest absolute value.
    """

    n: int
    sum: Float64[np.ndarray, " d_in"]
    sum_sq: Float64[np.ndarray, " d_in"]
    max_abs: float

    @property
    def finite(self) -> bool:
        """Whether every value is finite; a NaN or infinity shows in the sum of squares."""
        return bool(np.isfinite(self.sum_sq).all())

    @property
    def mean(self) -> Float64[np.ndarray, " d_in"]:
        """E x."""
        return self.sum / self.n

    @property
    def total_variance(self) -> float:
        """V = E||x - E x||^2."""
        return float((self.sum_sq / self.n - self.mean**2).clip(min=0).sum())


def array_sums(
    rows: Float32[np.ndarray, "row d_in"],
) -> tuple[ColumnSums, Float32[np.ndarray, " row"]]:
    """The sums of these rows, and their norms; `summing.summed` is faster for many rows."""
    size = max(1, PIECE_NUMBERS // rows.shape[1])
    parts, norms = [], [np.empty(0, np.float32)]
    for start in range(0, len(rows), size):
        exact = rows[start : start + size].astype(np.float64)
        squares = exact**2
        largest = float(np.abs(exact).max())
        parts.append(ColumnSums(len(exact), exact.sum(0), squares.sum(0), largest))
        norms.append(np.sqrt(squares.sum(1)).astype(np.float32))
    return merged(parts), np.concatenate(norms)


def without(whole: ColumnSums, part: ColumnSums) -> ColumnSums:
    """The sums of `whole` without the rows of `part`; `max_abs` is then an upper bound."""
    return ColumnSums(
        whole.n - part.n, whole.sum - part.sum, whole.sum_sq - part.sum_sq, whole.max_abs
    )


def merged(parts: Sequence[ColumnSums]) -> ColumnSums:
    """The sums of the union of disjoint sets of rows."""
    return ColumnSums(
        sum(part.n for part in parts),
        np.sum([part.sum for part in parts], axis=0),
        np.sum([part.sum_sq for part in parts], axis=0),
        max(part.max_abs for part in parts),
    )

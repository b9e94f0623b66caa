"""Sums from which mean and variance of any union of units follow."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

PIECE_NUMBERS = 2**17
"""Numbers that a core sums at a time: their float64 copies stay in its cache."""


@dataclass(frozen=True)
class ColumnSums:
    """Sums over rows, in float64, of the values as stored.

    Attributes:
        n: rows.
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
        """Whether every value is finite: one NaN or infinity makes its sum of squares so."""
        return bool(np.isfinite(self.sum_sq).all())

    @property
    def mean(self) -> Float64[np.ndarray, " d_in"]:
        """E x."""
        return self.sum / self.n

    @property
    def total_variance(self) -> float:
        """V = E||x - E x||^2."""
        return float((self.sum_sq / self.n - self.mean**2).clip(min=0).sum())


def column_sums(rows: Float[Tensor, "row d_in"]) -> ColumnSums:
    """The sums of these rows; torch's threads share the work."""
    d_in = rows.shape[1]
    total = torch.zeros(d_in, dtype=torch.float64)
    squares = torch.zeros_like(total)
    size = max(1, PIECE_NUMBERS * torch.get_num_threads() // d_in)
    exact, ones = total.new_empty(min(size, len(rows)), d_in), total.new_ones(size)
    for piece in rows.split(size):
        values, one = exact[: len(piece)].copy_(piece), ones[: len(piece)]
        total += one @ values
        squares += one @ values.square_()
    low, high = rows.aminmax()
    return ColumnSums(len(rows), total.numpy(), squares.numpy(), max(-float(low), float(high)))


def merged(parts: Sequence[ColumnSums]) -> ColumnSums:
    """The sums of the union of disjoint sets of rows."""
    return ColumnSums(
        sum(part.n for part in parts),
        np.sum([part.sum for part in parts], axis=0),
        np.sum([part.sum_sq for part in parts], axis=0),
        max(part.max_abs for part in parts),
    )

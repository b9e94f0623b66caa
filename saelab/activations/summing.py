"""Column sums of tensors, shared by torch's threads or computed on a GPU."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from saelab.activations.statistics import ColumnSums

PIECE_NUMBERS = 2**17
"""Numbers that a core sums at a time; their float64 copies stay in its cache."""
GPU_PIECE_NUMBERS = 2**25
"""Numbers that a GPU sums at a time, without a copy: few calls for a whole unit."""


def column_sums(rows: Float[Tensor, "row d_in"]) -> ColumnSums:
    """The sums of these rows; torch's threads share the work."""
    return summed(rows)[0]


def summed(rows: Float[Tensor, "row d_in"]) -> tuple[ColumnSums, Float32[np.ndarray, " row"]]:
    """The sums of these rows, and their norms."""
    return sums_of(rows.split(piece_rows(rows)), rows)


def piece_rows(rows: Float[Tensor, "row d_in"]) -> int:
    """The best number of these rows to sum at a time."""
    numbers = GPU_PIECE_NUMBERS if rows.is_cuda else PIECE_NUMBERS * torch.get_num_threads()
    return min(len(rows), max(1, numbers // rows.shape[1]))


def sums_of(
    pieces: Iterable[Float[Tensor, "piece d_in"]], rows: Float[Tensor, "row d_in"]
) -> tuple[ColumnSums, Float32[np.ndarray, " row"]]:
    """The sums and norms of `rows`, given in pieces of at most `piece_rows(rows)` rows.

    On a GPU this waits for the results.
    """
    total, squares = torch.zeros(2, rows.shape[1], dtype=torch.float64, device=rows.device)
    largest = total.new_zeros(())
    norms = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
    add = _add_on_gpu if rows.is_cuda else _Adder(piece_rows(rows), rows.shape[1])
    done = 0
    for piece in pieces:
        low, high = piece.aminmax()
        largest = torch.stack([largest, -low, high]).amax()
        add(piece, total, squares, norms[done : done + len(piece)])
        done += len(piece)
    sums = ColumnSums(len(rows), total.cpu().numpy(), squares.cpu().numpy(), float(largest))
    return sums, norms.cpu().numpy()


class _Adder:
    """Adds pieces of rows by products with ones, which are faster on a CPU than column sums."""

    def __init__(self, size: int, d_in: int) -> None:
        self._exact = torch.empty(size, d_in, dtype=torch.float64)
        self._ones, self._across = self._exact.new_ones(size), self._exact.new_ones(d_in)

    def __call__(
        self,
        piece: Float[Tensor, "piece d_in"],
        total: Float64[Tensor, " d_in"],
        squares: Float64[Tensor, " d_in"],
        norms: Float32[Tensor, " piece"],
    ) -> None:
        values, one = self._exact[: len(piece)].copy_(piece), self._ones[: len(piece)]
        total += one @ values
        squares += one @ values.square_()
        norms.copy_((values @ self._across).sqrt_())


def _add_on_gpu(
    piece: Float[Tensor, "piece d_in"],
    total: Float64[Tensor, " d_in"],
    squares: Float64[Tensor, " d_in"],
    norms: Float32[Tensor, " piece"],
) -> None:
    total += piece.sum(0, dtype=torch.float64)
    squares += torch.linalg.vector_norm(piece, dim=0, dtype=torch.float64).square_()
    norms.copy_(torch.linalg.vector_norm(piece, dim=1, dtype=torch.float32))

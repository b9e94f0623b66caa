"""A site's rows in their stored form: permuted, converted, summed and checksummed."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8, UInt64
from torch import Tensor

from saelab.activations.format import BLOCK_ROWS, Dtype
from saelab.activations.sealed import checksum
from saelab.activations.statistics import ColumnSums
from saelab.activations.summing import piece_rows, summed, sums_of
from saelab.activations.tensor_rows import TORCH, as_tensor, raw_bytes

Rows = Float[Tensor, "row d_in"] | Float[np.ndarray, "row d_in"]


@dataclass(frozen=True)
class PreparedRows:
    """Rows in the stored dtype and order.

    Attributes:
        xxh3: the checksum of each block of `BLOCK_ROWS` rows.
        sums: sums over the rows as stored.
        norms: ||x|| of each row.
    """

    rows: Float[Tensor, "row d_in"]
    xxh3: UInt64[np.ndarray, " block"]
    sums: ColumnSums
    norms: Float32[np.ndarray, " row"]

    @property
    def payload(self) -> memoryview:
        """The rows' bytes."""
        return raw_bytes(self.rows)


class RowPreparer:
    """Prepares the rows of one unit after another in the same memory, since new memory is slow.

    The result of `prepare` is valid until the next call.
    """

    def __init__(self, dtype: Dtype) -> None:
        self._dtype = TORCH[dtype]
        self._buffer: UInt8[Tensor, " byte"] = torch.empty(0, dtype=torch.uint8)

    def prepare(self, given: Rows, order: Int[np.ndarray, " row"]) -> PreparedRows:
        """Row `order[i]` of `given` becomes row i; a GPU permutes and sums its own rows."""
        source = as_tensor(given)
        rows = self._memory(len(order), source.shape[1], pinned=source.is_cuda)
        chosen = torch.from_numpy(order).to(source.device)
        if source.is_cuda:
            sums, norms = sums_of(_arriving(source, chosen, rows), source)
        else:
            if source.device.type == "cpu" and source.dtype == rows.dtype:
                torch.index_select(source, 0, chosen, out=rows)
            else:
                rows.copy_(source.index_select(0, chosen))
            sums, norms = summed(rows)
        return PreparedRows(rows, block_checksums(rows), sums, norms)

    def _memory(self, n_rows: int, d_in: int, *, pinned: bool) -> Float[Tensor, "row d_in"]:
        needed = n_rows * d_in * self._dtype.itemsize
        if len(self._buffer) < needed:
            self._buffer = torch.empty(needed, dtype=torch.uint8, pin_memory=pinned)
        return self._buffer[:needed].view(self._dtype).view(n_rows, d_in)


def _arriving(
    source: Float[Tensor, "row d_in"],
    chosen: Int[Tensor, " row"],
    rows: Float[Tensor, "row d_in"],
) -> Iterator[Float[Tensor, "piece d_in"]]:
    """The chosen rows of a GPU in pieces, each while it is being copied into `rows`."""
    size = piece_rows(source)
    for own, to in zip(chosen.split(size), rows.split(size), strict=True):
        piece = source.index_select(0, own).to(rows.dtype)
        to.copy_(piece, non_blocking=True)
        yield piece


def block_checksums(rows: Float[Tensor, "row d_in"]) -> UInt64[np.ndarray, " block"]:
    """The checksum of each block; the last may be short."""
    sums = [checksum(raw_bytes(block)) for block in rows.split(BLOCK_ROWS)]
    return np.array(sums, dtype=np.uint64)

"""A site's rows as they are stored: permuted, converted, summed and check-summed."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8, UInt64
from torch import Tensor

from saelab.activations.dtypes import TORCH, as_tensor, raw_bytes
from saelab.activations.format import BLOCK_ROWS, Dtype
from saelab.activations.parallel import parallel_map
from saelab.activations.sealed import checksum
from saelab.activations.statistics import ColumnSums, column_sums

Rows = Float[Tensor, "row d_in"] | Float[np.ndarray, "row d_in"]


@dataclass(frozen=True)
class PreparedRows:
    """Rows in the stored number type and order.

    Attributes:
        xxh3: the checksum of each block of `BLOCK_ROWS` rows.
        sums: sums over the rows as stored.
    """

    rows: Float[Tensor, "row d_in"]
    xxh3: UInt64[np.ndarray, " block"]
    sums: ColumnSums


class RowPreparer:
    """Prepares one site after another in the same memory: new memory would be much slower.

    What `prepare` returns lasts until it is called again.
    """

    def __init__(self, dtype: Dtype) -> None:
        self._dtype = TORCH[dtype]
        self._buffer: UInt8[Tensor, " byte"] = torch.empty(0, dtype=torch.uint8)

    def prepare(self, given: Rows, order: Int[np.ndarray, " row"]) -> PreparedRows:
        """Row `order[i]` of `given` becomes row i."""
        source = as_tensor(given)
        rows = self._memory(len(order), source.shape[1])
        chosen = torch.from_numpy(order).to(source.device)
        if source.device.type == "cpu" and source.dtype == rows.dtype:
            torch.index_select(source, 0, chosen, out=rows)
        else:
            rows.copy_(source.index_select(0, chosen))
        return PreparedRows(rows, block_checksums(rows), column_sums(rows))

    def _memory(self, n_rows: int, d_in: int) -> Float[Tensor, "row d_in"]:
        needed = n_rows * d_in * self._dtype.itemsize
        if len(self._buffer) < needed:
            self._buffer = torch.empty(needed, dtype=torch.uint8)
        return self._buffer[:needed].view(self._dtype).view(n_rows, d_in)


def block_checksums(rows: Float[Tensor, "row d_in"]) -> UInt64[np.ndarray, " block"]:
    """The checksum of each block; the last may be short."""
    sums = parallel_map(lambda block: checksum(raw_bytes(block)), rows.split(BLOCK_ROWS))
    return np.array(sums, dtype=np.uint64)

"""Several sites as one: their rows side by side, each site at unit variance per dimension.

A joint site is written `A+B`. Over several stores of the same tokens it has the sites of the first
store, then those of the second, and so on. The sites' own scales would otherwise decide what an SAE
of all of them learns, since the stream grows from layer to layer.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Integer, UInt8

from saelab.activations.order import Blocks
from saelab.activations.site import SiteView
from saelab.activations.statistics import ColumnSums

if TYPE_CHECKING:
    from torch import Tensor


class JointSite:
    """The rows of several sites, read as one site of float32 rows; see `SiteView`.

    Attributes:
        parts: the sites.
        factors: of each site: its rows are multiplied by it. sqrt(d / V), with V the variance of
            the site's rows that are not massive.
    """

    def __init__(
        self,
        parts: Sequence[SiteView],
        sums: Sequence[ColumnSums],
        blocks: Blocks,
        sample_rows: Callable[[int, int], Int[np.ndarray, " n"]],
    ) -> None:
        self.parts = tuple(parts)
        self.factors = tuple(_factor(each) for each in sums)
        self._blocks, self._sample_rows = blocks, sample_rows

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of each site."""
        return tuple(part.d_in for part in self.parts)

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return sum(self.widths)

    @property
    def n_rows(self) -> int:
        """Number of rows of all committed units."""
        return self.parts[0].n_rows

    @cached_property
    def sums(self) -> ColumnSums:
        """Sums over all rows."""
        return self.joined_sums([part.sums for part in self.parts])

    def joined_sums(self, sums: Sequence[ColumnSums]) -> ColumnSums:
        """The sums of joint rows, from those of each site over the same rows."""
        scaled = list(zip(sums, self.factors, strict=True))
        return ColumnSums(
            sums[0].n,
            np.concatenate([each.sum * factor for each, factor in scaled]),
            np.concatenate([each.sum_sq * factor**2 for each, factor in scaled]),
            max(each.max_abs * factor for each, factor in scaled),
        )

    @property
    def mean(self) -> Float64[np.ndarray, " d_in"]:
        """E x over all rows."""
        return self.sums.mean

    @property
    def total_variance(self) -> float:
        """V = E||x - E x||^2 over all rows."""
        return self.sums.total_variance

    @property
    def block_starts(self) -> Int[np.ndarray, " block"]:
        """The first row of each block, in store order."""
        return self.parts[0].block_starts

    def unit_start(self, unit: int) -> int:
        """The first row of the store's `unit`-th committed unit, in store order."""
        return self.parts[0].unit_start(unit)

    def bytes_of(self, rows: int) -> int:
        """Bytes of this many rows as they are stored."""
        return sum(part.bytes_of(rows) for part in self.parts)

    def rows_of(self, raw: "UInt8[Tensor, ' byte']") -> "Float[Tensor, 'row d_in']":
        """The rows with these stored bytes: all of the first site, then all of the second, ..."""
        n = len(raw) // self.bytes_of(1)
        pieces = raw.split([part.bytes_of(n) for part in self.parts])
        return self._joined([p.rows_of(b) for p, b in zip(self.parts, pieces, strict=True)])

    def read_block(self, block: int) -> "Float[Tensor, 'row d_in']":
        """The rows of a block.

        Raises:
            DamagedStoreError: the block is damaged; the message names file and block.
        """
        return self._joined([part.read_block(block) for part in self.parts])

    def read_blocks(
        self, blocks: Integer[np.ndarray, " block"], out: "UInt8[Tensor, ' byte'] | None" = None
    ) -> "Float[Tensor, 'row d_in']":
        """The rows of these blocks, one after the other; `out` is memory for their bytes."""
        import torch

        total = self.bytes_of(int(self._blocks.count[blocks].sum()))
        raw = torch.empty(total, dtype=torch.uint8) if out is None else out[:total]
        for _ in self.reading(blocks, raw):
            pass
        return self.rows_of(raw)

    def reading(
        self, blocks: Integer[np.ndarray, " block"], out: "UInt8[Tensor, ' byte']"
    ) -> Iterator[int]:
        """Read these blocks into `out`; now and then, yields the number of bytes read so far."""
        n, done = int(self._blocks.count[blocks].sum()), 0
        for part in self.parts:
            size = part.bytes_of(n)
            for ready in part.reading(blocks, out[done : done + size]):
                yield done + ready
            done += size

    def rows(self, start: int, stop: int) -> "Float[Tensor, 'row d_in']":
        """Rows `start` to `stop` in store order."""
        return self.take(np.arange(*slice(start, stop).indices(self.n_rows)))

    def take(self, rows: Integer[np.ndarray, " n"]) -> "Float[Tensor, 'n d_in']":
        """The rows at these store-order indices."""
        return self._joined([part.take(rows) for part in self.parts])

    def sample(self, n: int, seed: int) -> "Float[Tensor, 'n d_in']":
        """`n` distinct random rows; the same indices at every site for the same seed."""
        return self.take(self._sample_rows(n, seed))

    def read_alone(self, rows: Integer[np.ndarray, " n"]) -> Float32[np.ndarray, "n d_in"]:
        """These rows, without the other rows of their blocks; checksums are not checked."""
        scaled = zip(self.parts, self.factors, strict=True)
        found = [part.read_alone(rows) * np.float32(factor) for part, factor in scaled]
        return np.concatenate(found, axis=1)

    def _joined(self, found: "Sequence[Float[Tensor, 'row _']]") -> "Float[Tensor, 'row d_in']":
        import torch

        scaled = zip(found, self.factors, strict=True)
        return torch.cat([rows.float() * factor for rows, factor in scaled], dim=1)


AnySite = SiteView | JointSite
"""One site, or several as one."""


def _factor(sums: ColumnSums) -> float:
    variance = sums.total_variance
    return (len(sums.sum) / variance) ** 0.5 if variance else 1.0

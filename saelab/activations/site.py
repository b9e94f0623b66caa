"""The rows of one site, read by `preadv` after the headers were checked."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Integer, UInt8

from saelab.activations.dtypes import numbers
from saelab.activations.format import BLOCK_ROWS, Dtype, Manifest, SiteSpec
from saelab.activations.hook_file import HookHeader, read_hook_header, read_payload, row_bytes
from saelab.activations.norms import NormRecord
from saelab.activations.norms_kept import kept_records
from saelab.activations.open_files import OpenFiles
from saelab.activations.order import Blocks
from saelab.activations.parallel import WORKERS, parallel_results
from saelab.activations.sealed import SealedFile
from saelab.activations.statistics import ColumnSums, merged

if TYPE_CHECKING:
    from torch import Tensor

TASK_BYTES = 2**23
"""Bytes of the blocks that a thread reads one after the other."""


class SiteView:
    """The rows of one site, over all committed units.

    A block is compared with its checksum when it is first read. Several threads may read at once.

    Attributes:
        spec: hook, width and kind.
        sums: sums over all rows; `mean` and `total_variance` follow from them.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        spec: SiteSpec,
        blocks: Blocks,
        paths: Mapping[int, Path],
        sample_rows: Callable[[int, int], Int[np.ndarray, " n"]],
    ) -> None:
        self.spec = spec
        self._root = root
        self._dtype: Dtype = manifest.dtype
        self._row_bytes = row_bytes(manifest, spec)
        self._blocks = blocks
        self._sample_rows = sample_rows
        self._paths = tuple(paths.values())
        self._headers = tuple(_header(manifest, spec, *item) for item in paths.items())
        self._check_rows()
        self._files = OpenFiles()
        self._trusted = np.zeros(len(blocks.count), dtype=bool)
        self.sums: ColumnSums = merged([header.sums for header in self._headers])

    def _check_rows(self) -> None:
        """Check that each hook file has as many rows as its commit marker says."""
        planned = np.bincount(self._blocks.unit, self._blocks.count)
        for path, header, rows in zip(self._paths, self._headers, planned, strict=True):
            if header.rows != rows:
                with SealedFile(path) as file:
                    raise file.damaged(f"has {header.rows} rows, its tokens file {int(rows)}")

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return self.spec.d_in

    @property
    def n_rows(self) -> int:
        """Number of rows of all committed units."""
        return self.sums.n

    @property
    def mean(self) -> Float64[np.ndarray, " d_in"]:
        """E x over all rows."""
        return self.sums.mean

    @property
    def total_variance(self) -> float:
        """V = E||x - E x||^2 over all rows."""
        return self.sums.total_variance

    def read_block(
        self, block: int, out: "UInt8[Tensor, ' byte'] | None" = None
    ) -> "Float[Tensor, 'row d_in']":
        """The rows of a block in the stored dtype, read into `out` if it is given.

        Raises:
            DamagedStoreError: the block is damaged; the message names file and block.
        """
        import torch

        count = int(self._blocks.count[block])
        raw = torch.empty(count * self._row_bytes, dtype=torch.uint8) if out is None else out
        self._read_raw(block, raw.numpy().data)
        return self.rows_of(raw)

    def _read_raw(self, block: int, raw: memoryview) -> None:
        unit, first = int(self._blocks.unit[block]), int(self._blocks.first[block])
        header = self._headers[unit]
        with self._files.using(self._paths[unit]) as file:
            if file.seal != header.seal:
                raise file.damaged("was replaced while the store was open")
            check = not self._trusted[block]
            read_payload(file, header, first, raw, check=check)
            self._trusted[block] = True

    def bytes_of(self, rows: int) -> int:
        """Bytes of this many rows in the stored dtype."""
        return rows * self._row_bytes

    def rows_of(self, raw: "UInt8[Tensor, ' byte']") -> "Float[Tensor, 'row d_in']":
        """The rows with these stored bytes."""
        from saelab.activations.tensor_rows import rows_from_bytes

        return rows_from_bytes(raw, self._dtype, self.d_in)

    def read_blocks(
        self, blocks: Integer[np.ndarray, " block"], out: "UInt8[Tensor, ' byte'] | None" = None
    ) -> "Float[Tensor, 'row d_in']":
        """The rows of these blocks, one after the other, in the stored dtype.

        They are read into the start of `out` if it is given: reading into memory used before is
        several times faster than into new memory.
        """
        import torch

        total = self.bytes_of(int(self._blocks.count[blocks].sum()))
        raw = torch.empty(total, dtype=torch.uint8) if out is None else out[:total]
        for _ in self.reading(blocks, raw):
            pass
        return self.rows_of(raw)

    def reading(
        self, blocks: Integer[np.ndarray, " block"], out: "UInt8[Tensor, ' byte']"
    ) -> Iterator[int]:
        """Read these blocks into `out`; after some, yields the number of bytes read so far."""
        ends = np.cumsum(self._blocks.count[blocks] * self._row_bytes).tolist()
        items = list(zip(blocks.tolist(), [0, *ends], ends, strict=False))
        raw = out.numpy().data

        def read(task: list[tuple[int, int, int]]) -> int:
            for block, start, stop in task:
                self._read_raw(block, raw[start:stop])
            return task[-1][2]

        # Handing a task to a thread costs Python's lock as much as reading a block does.
        fitting = TASK_BYTES // (BLOCK_ROWS * self._row_bytes)
        size = max(1, min(fitting, len(items) // (2 * WORKERS)))
        yield from parallel_results(read, [items[i : i + size] for i in range(0, len(items), size)])

    def rows(self, start: int, stop: int) -> "Float[Tensor, 'row d_in']":
        """Rows `start` to `stop` in store order (shuffled inside each unit), as float32."""
        return self.take(np.arange(*slice(start, stop).indices(self.n_rows)))

    def take(self, rows: Integer[np.ndarray, " n"]) -> "Float[Tensor, 'n d_in']":
        """The rows at these store-order indices, as float32; reads each block at most once."""
        import torch

        if len(rows) and not 0 <= rows.min() <= rows.max() < self.n_rows:
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a site with {self.n_rows}")
        out = torch.empty(len(rows), self.d_in)
        order = np.argsort(rows, kind="stable")
        cuts = np.searchsorted(rows[order], self._blocks.start)
        for block in np.flatnonzero(np.diff(cuts, append=len(rows))):
            places = order[cuts[block] : cuts[block + 1] if block + 1 < len(cuts) else None]
            inside = torch.from_numpy(rows[places] - self._blocks.start[block])
            out[torch.from_numpy(places)] = self.read_block(int(block))[inside].float()
        return out

    @property
    def block_starts(self) -> Int[np.ndarray, " block"]:
        """The first row of each block, in store order."""
        return self._blocks.start

    def unit_start(self, unit: int) -> int:
        """The first row of the store's `unit`-th committed unit, in store order."""
        return int(self._blocks.start[np.searchsorted(self._blocks.unit, unit)])

    def unit_norms(self, unit: int) -> Float32[np.ndarray, " row"]:
        """||x|| of each row of the store's `unit`-th committed unit; reads all of them."""
        from saelab.activations.summing import summed

        blocks = np.flatnonzero(self._blocks.unit == unit)
        return np.concatenate(
            list(parallel_results(lambda block: summed(self.read_block(block))[1], blocks.tolist()))
        )

    @property
    def norms_known(self) -> bool:
        """Whether `norm_records` can avoid reading every row."""
        return all(h.norms is not None for h in self._headers) or self._kept_norms.is_file()

    @property
    def _kept_norms(self) -> Path:
        return self._root / "stats" / f"{self.spec.slug}.safetensors"

    def norm_records(self) -> tuple[NormRecord, ...]:
        """The norm record of each unit; if the store has none, computed from all rows."""
        recorded = [header.norms for header in self._headers if header.norms is not None]
        if len(recorded) == len(self._headers):
            return tuple(recorded)
        return kept_records(
            self._kept_norms,
            seals=[header.seal for header in self._headers],
            rows=[header.rows for header in self._headers],
            scan=self.unit_norms,
        )

    def read_alone(self, rows: Integer[np.ndarray, " n"]) -> Float32[np.ndarray, "n d_in"]:
        """These rows, without the other rows of their blocks; needs no torch.

        Checksums, which cover whole blocks, are not checked.
        """
        raw = np.empty((len(rows), self._row_bytes), dtype=np.uint8)
        block = np.searchsorted(self._blocks.start, rows, side="right") - 1
        unit = self._blocks.unit[block]
        inside = rows - self._blocks.start[block] + self._blocks.first[block]

        def read(number: int) -> None:
            with SealedFile(self._paths[number]) as file:
                header = self._headers[number]
                if file.seal != header.seal:
                    raise file.damaged("was replaced while the store was open")
                for place in np.flatnonzero(unit == number):
                    offset = header.payload_offset + int(inside[place]) * self._row_bytes
                    file.read_into(offset, raw[place].data)

        for _ in parallel_results(read, np.unique(unit).tolist()):
            pass
        return numbers(raw, self._dtype)

    def sample(self, n: int, seed: int) -> "Float[Tensor, 'n d_in']":
        """`n` distinct random rows; the same indices at every site for the same seed."""
        return self.take(self._sample_rows(n, seed))


def _header(manifest: Manifest, spec: SiteSpec, unit: int, path: Path) -> HookHeader:
    with SealedFile(path) as file:
        return read_hook_header(file, manifest, spec, unit)

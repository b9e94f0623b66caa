"""HDF5 files built in memory, with a hole where the payload goes.

libhdf5 never writes to a disk here, since a full disk makes it crash the process. It writes
metadata and small datasets to a `_SparseFile`; saelab itself writes the payload.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from jaxtyping import Shaped
from typing_extensions import override

ALIGNMENT = 4096


@dataclass(frozen=True)
class PayloadSpec:
    """The one large dataset of a file."""

    name: str
    shape: tuple[int, int]
    type: h5py.h5t.TypeID

    @property
    def nbytes(self) -> int:
        """Size of the dataset in bytes."""
        return self.shape[0] * self.shape[1] * self.type.get_size()


@dataclass(frozen=True)
class Image:
    """A whole HDF5 file, except the payload between `before` and `after`."""

    before: bytes
    after: bytes
    payload_bytes: int


def build_image(
    attributes: Mapping[str, str | int | float],
    datasets: Mapping[str, Shaped[np.ndarray, "..."]],
    payload: PayloadSpec | None = None,
) -> Image:
    """The file with these root attributes and contiguous datasets; the payload is 4 KiB aligned."""
    sparse = _SparseFile()
    nbytes = payload.nbytes if payload else 0
    # HDF5 aligns only objects of at least the threshold's size; a small payload must be aligned
    # too.
    with h5py.File(
        sparse,
        "w",
        libver=("v110", "v110"),
        alignment_threshold=min(nbytes, 4 * ALIGNMENT) if payload else 1,
        alignment_interval=ALIGNMENT if payload else 1,
    ) as file:
        for name, value in attributes.items():
            file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value
        for name, values in datasets.items():
            file.create_dataset(name, data=values)
        offset = _reserve(file, payload) if payload else None
    if offset is None:
        return Image(sparse.render(0, sparse.size), b"", 0)
    return Image(sparse.render(0, offset), sparse.render(offset + nbytes, sparse.size), nbytes)


def _reserve(file: h5py.File, payload: PayloadSpec) -> int:
    """Create the payload's dataset without writing it; returns its offset in the file."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)
    space = h5py.h5s.create_simple(payload.shape)
    dataset = h5py.h5d.create(file.id, payload.name.encode(), payload.type, space, plist)
    offset = dataset.get_offset()
    assert offset is not None
    assert offset % ALIGNMENT == 0
    return offset


class _SparseFile(io.RawIOBase):
    """A file in memory that stores only the bytes written; the rest reads as zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        self._position = 0
        self._written: list[tuple[int, bytes]] = []

    def render(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`."""
        out = bytearray(stop - start)
        for offset, data in self._written:
            low, high = max(start, offset), min(stop, offset + len(data))
            if low < high:
                out[low - start : high - start] = data[low - offset : high - offset]
        return bytes(out)

    @override
    def readable(self) -> bool:
        return True

    @override
    def writable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = origin + offset
        return self._position

    @override
    def tell(self) -> int:
        return self._position

    @override
    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        n = min(len(view), max(0, self.size - self._position))
        view[:n] = self.render(self._position, self._position + n)
        self._position += n
        return n

    @override
    def write(self, data: Any, /) -> int:
        copy = bytes(data)
        self._written.append((self._position, copy))
        self._position += len(copy)
        self.size = max(self.size, self._position)
        return len(copy)

    @override
    def truncate(self, size: int | None = None, /) -> int:
        self.size = self._position if size is None else size
        return self.size

"""HDF5 files as they were before they had an index, which a test may change as it likes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from saelab.formats.hdf5_without_index import MARK


@contextmanager
def as_before(path: Path) -> Iterator[h5py.File]:
    """The HDF5 file at `path`, open to be changed; it loses its index and the mark of one."""
    with h5py.File(path, "r+") as h5:
        if MARK in h5.attrs:
            del h5.attrs[MARK]
        yield h5

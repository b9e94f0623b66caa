"""HDF5 files of plain arrays, read without libhdf5, which loops on some damaged files.

After the HDF5 file, where HDF5 tools do not look, come an index and then 48 bytes: a magic, the
index's length, and its sha256. The index is JSON: `facts`; `bytes` and `xxh3` (128 bits) of the
HDF5 file; and for each of the `arrays` its dtype, shape, offset and `xxh3`. A reader checks the
index against its sha256 and maps the arrays into memory; it parses no HDF5. Arrays of up to
`CHECKED_AT_ONCE` bytes are compared with their checksum at the first use. Larger arrays would take
too long; `check_hdf5`, and so `saelab verify`, checks those.

Older files have no index. libhdf5 reads them in a separate process with limited seconds and
megabytes (`hdf5_without_index.py`), which reports where the arrays are.
"""

import hashlib
import io
import json
import math
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator, KeysView, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import xxhash
from numpy import ndarray

from saelab.config import UsageError
from saelab.files import replace_file
from saelab.formats import hdf5_without_index
from saelab.formats.json_file import parse_json
from saelab.formats.regular import MissingFileError, open_regular

MAGIC = b"saelab\x00\x02"
TAIL = struct.Struct("<8sQ32s")
MAX_INDEX_BYTES = 2**26
CHECKED_AT_ONCE = 2**24
DTYPE = re.compile(r"[<>|][iuf][1248]")
MAX_DIMENSIONS = 8
MAX_LENGTH = 2**40
"""Largest length of an axis; an empty array may have one that is longer than the file."""
SECONDS = 60
"""Seconds that the process for old files may take on a busy machine; it needs 2 s of a core."""
_CHUNK = 2**24


class Hdf5Arrays:
    """The arrays of one file as memory maps, by name, and its facts.

    Attributes:
        path: the file.
        facts: what the writer said of the file.
        sealed: whether the file has an index; older files have none.
        hdf5_bytes: size of the HDF5 file.
    """

    def __init__(self, path: Path, index: dict[str, Any], hdf5_bytes: int, *, sealed: bool) -> None:
        self.path = path
        self.facts: dict[str, Any] = index["facts"]
        self.sealed = sealed
        self.hdf5_bytes = hdf5_bytes
        self.digest: str = index.get("xxh3", "")
        self._entries: dict[str, dict[str, Any]] = index["arrays"]
        self._used: dict[str, ndarray] = {}

    def __getitem__(self, name: str) -> ndarray:
        """The array of that name.

        Raises:
            KeyError: there is no such array.
            UsageError: the array is damaged.
        """
        if name not in self._used:
            self._used[name] = self._checked(name)
        return self._used[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def keys(self) -> KeysView[str]:
        """The arrays' names."""
        return self._entries.keys()

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def kind(self, name: str) -> tuple[str, tuple[int, ...]]:
        """The kind of numbers (`i`, `u` or `f`) and the shape of an array, without reading it."""
        entry = self._entries[name]
        return entry["dtype"][1], tuple(entry["shape"])

    def _checked(self, name: str) -> ndarray:
        entry = self._entries[name]
        shape, dtype = tuple(entry["shape"]), np.dtype(entry["dtype"])
        if 0 in shape:
            return np.zeros(shape, dtype)
        try:
            mapped = np.memmap(self.path, dtype, "r", entry["offset"], shape)
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.path} cannot be read: {error}.") from None
        # A plain array over the memory map: indexing a memmap element by element is slow.
        array = np.asarray(mapped)
        if self.sealed and array.nbytes <= CHECKED_AT_ONCE and _xxh3(array) != entry["xxh3"]:
            raise UsageError(
                f"{self.path} was altered: {name} does not match its checksum; make it again."
            )
        return array


def write_hdf5(
    path: Path,
    arrays: Mapping[str, ndarray],
    facts: Mapping[str, Any],
    *,
    facts_in: Literal["attribute", "dataset"] = "attribute",
) -> None:
    """Write contiguous datasets and the JSON text `facts`, sealed, whole or not at all.

    HDF5 attributes hold at most 64 KiB, so longer JSON goes into a dataset.
    """
    # HDF5 builds the file in memory: with a full disk it would crash the process, not raise.
    image = io.BytesIO()
    places: dict[str, int | None] = {}
    with h5py.File(image, "w", libver=("v110", "v114")) as h5:
        h5.attrs[hdf5_without_index.MARK] = np.uint8(1)
        (h5.attrs if facts_in == "attribute" else h5)["facts"] = json.dumps(facts, allow_nan=False)
        for name, values in arrays.items():
            places[name] = h5.create_dataset(name, data=values).id.get_offset()
    data = image.getbuffer()
    entries = {
        name: _entry(values, places[name] or 0, data)
        for name, values in ((n, np.asarray(v)) for n, v in arrays.items())
    }
    index = {
        "facts": facts,
        "bytes": len(data),
        "xxh3": xxhash.xxh3_128_hexdigest(data),
        "arrays": entries,
    }
    raw = json.dumps(index, allow_nan=False, separators=(",", ":")).encode()
    tail = TAIL.pack(MAGIC, len(raw), hashlib.sha256(raw).digest())
    replace_file(path, lambda file: [file.write(part) for part in (data, raw, tail)])


def read_hdf5(path: Path, kind: str = "HDF5 file") -> Hdf5Arrays:
    """The file of `write_hdf5`, or of an older version, at `path`; arrays are not read yet.

    `kind` is the kind of file in error messages.

    Raises:
        UsageError: the file is missing, damaged, or of another kind.
    """
    file, size = open_regular(path)
    with file:
        tail = _read_at(file, max(0, size - TAIL.size), TAIL.size)
        magic, n, digest = TAIL.unpack(tail) if len(tail) == TAIL.size else (b"", 0, b"")
        if magic != MAGIC:
            status = path.stat()
            index = _index_of_old(path, kind, (size, status.st_mtime_ns, status.st_ino))
            return _described(path, kind, index, size)
        if not 0 < n <= min(size - TAIL.size, MAX_INDEX_BYTES):
            raise UsageError(f"{path} is not a whole {kind}: its index is not all there.")
        raw = _read_at(file, size - TAIL.size - n, n)
    if hashlib.sha256(raw).digest() != digest:
        raise UsageError(f"{path} is not a whole {kind}: its index does not match its seal.")
    index = parse_json(raw, f"The index of {path}")
    return _described(path, kind, index, size - TAIL.size - n, sealed=True)


def read_format(path: Path, kind: str, form: str, command: str) -> Hdf5Arrays:
    """As `read_hdf5`, of a file whose fact `format` is `form`, which `command` makes."""
    try:
        found = read_hdf5(path, kind)
    except MissingFileError:
        raise UsageError(f"{path} does not exist; run `{command}` first.") from None
    if (other := found.facts.get("format")) != form:
        raise UsageError(
            f"{path} has the format {str(other)[:60]!r}, this saelab reads {form!r}; run "
            f"`{command}` again."
        )
    return found


def check_hdf5(found: Hdf5Arrays) -> None:
    """Compare the whole HDF5 file with its checksum, if it has one.

    Raises:
        UsageError: the file is damaged.
    """
    if not found.sealed:
        return
    digest = xxhash.xxh3_128()
    file, _ = open_regular(found.path)
    with file:
        left = found.hdf5_bytes
        while part := file.read(min(_CHUNK, left)):
            digest.update(part)
            left -= len(part)
    if left or digest.hexdigest() != found.digest:
        raise UsageError(f"{found.path} was altered: its contents do not match their checksum.")


def _entry(values: ndarray, offset: int, data: memoryview) -> dict[str, Any]:
    return {
        "dtype": values.dtype.str,
        "shape": list(values.shape),
        "offset": offset,
        "xxh3": xxhash.xxh3_128_hexdigest(data[offset : offset + values.nbytes]),
    }


def _xxh3(array: ndarray) -> str:
    return xxhash.xxh3_128_hexdigest(array.reshape(-1).view(np.uint8).data)


def _read_at(file: io.FileIO, offset: int, n: int) -> bytes:
    file.seek(offset)
    parts = []
    while n > 0 and (part := file.read(n)):
        parts.append(part)
        n -= len(part)
    return b"".join(parts)


def _described(
    path: Path, kind: str, index: object, size: int, *, sealed: bool = False
) -> Hdf5Arrays:
    """The arrays that an index describes; the index is untrusted."""
    if problem := _problem(index, size, sealed=sealed):
        raise UsageError(f"{path} is not a whole {kind}: {problem}.")
    assert isinstance(index, dict), "_problem refuses all else"
    return Hdf5Arrays(path, index, size, sealed=sealed)


def _problem(index: object, size: int, *, sealed: bool) -> str | None:
    if not isinstance(index, dict) or not isinstance(index.get("facts"), dict):
        return "it says no facts"
    arrays = index.get("arrays")
    if not isinstance(arrays, dict):
        return "it says no arrays"
    if sealed and (index.get("bytes") != size or not isinstance(index.get("xxh3"), str)):
        return "it has another size than its index says"
    for name, entry in arrays.items():
        if not isinstance(entry, dict) or (sealed and not isinstance(entry.get("xxh3"), str)):
            return f"its index has no entry for {name[:60]!r}"
        if problem := _entry_problem(entry, size):
            return f"{name[:60]!r} {problem}"
    return None


def _entry_problem(entry: dict[str, Any], size: int) -> str | None:
    dtype, shape, offset = (entry.get(name) for name in ("dtype", "shape", "offset"))
    if not isinstance(dtype, str) or not DTYPE.fullmatch(dtype) or dtype[1:] == "f1":
        return "is not an array of numbers"
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        return "has no shape"
    if type(offset) is not int or not all(type(n) is int for n in shape):
        return "has no shape, or no place"
    if min(offset, *shape, 0) < 0 or max(offset, *shape, 0) > MAX_LENGTH:
        return "reaches past the end of the file"
    if 0 not in shape and offset + math.prod(shape) * int(dtype[2]) > size:
        return "reaches past the end of the file"
    return None


@lru_cache(maxsize=256)
def _index_of_old(path: Path, kind: str, stamp: tuple[int, ...]) -> object:
    """The index of a file without one, made by libhdf5 in a limited process."""
    del stamp  # part of the cache's key only
    command = [sys.executable, "-P", hdf5_without_index.__file__, str(path.absolute())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(f"{path} is not a whole {kind}: reading it does not end.") from None
    if done.returncode < 0:
        raise UsageError(
            f"{path} is not a whole {kind}: reading it does not end, or crashes the reader."
        )
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip().splitlines() or ["it cannot be read"]
        raise UsageError(f"{path} is not a whole {kind}: {told[-1][:160].rstrip('.')}.")
    return parse_json(done.stdout, f"What HDF5 says of {path}")

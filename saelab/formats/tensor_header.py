"""The header of an untrusted safetensors file; needs no torch."""

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from saelab.config import UsageError
from saelab.files import sha256_file
from saelab.formats.json_file import parse_json
from saelab.formats.regular import open_regular

if TYPE_CHECKING:
    import torch

SEAL = "seal"
CHECKED_TO = 2**32
"""Larger files are not read through when they are opened: that would take longer than their use."""
TYPES = {
    **{f"F{bits}": f"float{bits}" for bits in (64, 32, 16)},
    **{f"I{bits}": f"int{bits}" for bits in (64, 32, 16, 8)},
    **{f"U{bits}": f"uint{bits}" for bits in (64, 32, 16, 8)},
    "BF16": "bfloat16",
    "BOOL": "bool",
}
"""The dtypes that are read, by torch's names; other tools' packed numbers are refused."""
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
"""Numpy's dtypes of floating-point numbers; of bfloat16 only the bits are read."""
MAX_HEADER_BYTES = 2**23
MAX_DIMENSIONS = 8
MAX_SIZE = 2**62


@dataclass(frozen=True)
class TensorSpec:
    """A header's entry for one tensor.

    Attributes:
        code: its dtype as the format names it, e.g. `F32`.
        start, stop: range of its bytes, counted from the beginning of the file.
    """

    code: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def dtype(self) -> "torch.dtype":
        """Its dtype by torch's name."""
        import torch

        return getattr(torch, TYPES[self.code])


@dataclass(frozen=True)
class TensorHeader:
    """A header that matches its file.

    Attributes:
        path: the file.
        metadata: the metadata, texts by name.
        tensors: the tensors in the order of their bytes, which have no gaps.
        data_start: start of the tensors' bytes.
        entries: the header as it is in the file.
    """

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorSpec]
    data_start: int
    entries: Mapping[str, Any] = field(repr=False)

    @property
    def sealed(self) -> bool:
        """Whether the file carries a seal."""
        return SEAL in self.entries.get("__metadata__", {})

    def check_shapes(self, expected: Mapping[str, Sequence[int]]) -> None:
        """Refuse a file with other tensors than these, or with other shapes.

        Raises:
            UsageError: the message names the tensor.
        """
        for name in sorted(expected.keys() | self.tensors.keys()):
            there = self.tensors.get(name)
            if there is None:
                raise UsageError(f"{self.path} lacks the tensor {name}.")
            if name not in expected:
                raise UsageError(f"{self.path} has a tensor {name[:60]!r} that has no place.")
            if there.shape != tuple(expected[name]):
                raise UsageError(
                    f"{self.path}: {name} has the shape {list(there.shape)}, its configuration "
                    f"says {list(expected[name])}."
                )

    def check_floats(self, names: Sequence[str] | None = None) -> None:
        """Refuse tensors (all, or the named ones) that are not floating-point.

        Raises:
            UsageError: the message names the tensor.
        """
        for name in self.tensors if names is None else names:
            if self.tensors[name].code not in FLOATS:
                raise UsageError(
                    f"{self.path}: {name[:60]} does not hold floating-point numbers but "
                    f"{TYPES[self.tensors[name].code]}."
                )

    def matrix_shape(self, name: str) -> tuple[int, int]:
        """The rows and columns of a matrix.

        Raises:
            UsageError: there is no matrix of that name, or it is empty.
        """
        spec = self.tensors.get(name)
        if spec is None or len(spec.shape) != 2 or 0 in spec.shape:
            raise UsageError(f"{self.path} has no matrix {name}.")
        return spec.shape[0], spec.shape[1]


def read_tensor_header(path: Path) -> TensorHeader:
    """The header of the safetensors file at `path`; no tensor is read.

    Raises:
        UsageError: it is no regular file, or its header is damaged or does not match its size.
    """
    file, size = open_regular(path)
    with file:
        return header_of(path, file, size)


def read_matrix(header: TensorHeader, name: str) -> Float32[ndarray, "rows columns"]:
    """A matrix of floating-point numbers from a file with this header.

    Raises:
        UsageError: there is no matrix of that name, or it has NaN or infinite numbers.
    """
    shape = header.matrix_shape(name)
    header.check_floats([name])
    spec = header.tensors[name]
    file, _ = open_regular(header.path)
    with file:
        file.seek(spec.start)
        raw = np.fromfile(file, FLOATS[spec.code], math.prod(shape))
    if raw.size != math.prod(shape):
        raise UsageError(f"{header.path} ended while it was read.")
    # bfloat16 is the upper half of float32.
    values = (raw.astype(np.uint32) << 16).view(np.float32) if spec.code == "BF16" else raw
    if not (np.isfinite(values.min()) and np.isfinite(values.max())):
        raise UsageError(f"{header.path}: {name} holds NaN or infinite numbers.")
    return values.astype(np.float32, copy=False).reshape(shape)


def header_of(path: Path, file: FileIO, size: int) -> TensorHeader:
    """As `read_tensor_header`, for an open file of `size` bytes."""
    raw = file.read(8)
    n = struct.unpack("<Q", raw)[0] if len(raw) == 8 else -1
    if not 0 < n <= size - 8:
        raise UsageError(f"{path} is not a whole safetensors file: its header is not all there.")
    if n > MAX_HEADER_BYTES:
        raise UsageError(
            f"{path} has a header of {n:,} bytes; at most {MAX_HEADER_BYTES:,} are read."
        )
    entries = parse_json(file.read(n), f"The header of {path}")
    try:
        metadata, tensors = _parsed(entries, size - 8 - n, 8 + n)
    except ValueError as error:
        raise UsageError(f"{path} is not a whole safetensors file: {error}.") from None
    return TensorHeader(path, metadata, tensors, 8 + n, entries)


def _parsed(
    entries: object, data_bytes: int, data_start: int
) -> tuple[dict[str, str], dict[str, TensorSpec]]:
    if not isinstance(entries, dict):
        raise ValueError("its header is no JSON object")
    metadata = entries.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata are no texts")
    found = {n: _spec(n, e, data_start) for n, e in entries.items() if n != "__metadata__"}
    tensors = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].stop)))
    end = data_start
    for name, spec in tensors.items():
        if spec.start != end:
            raise ValueError(f"the bytes of {name[:60]!r} do not follow those before it")
        end = spec.stop
    if end != data_start + data_bytes:
        raise ValueError(f"its tensors have {end - data_start} bytes, the file has {data_bytes}")
    return {name: text for name, text in metadata.items() if name != SEAL}, tensors


def _spec(name: str, entry: object, data_start: int) -> TensorSpec:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {name[:60]!r} is not that of a tensor")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in TYPES:
        raise ValueError(f"{name[:60]!r} is of the type {str(code)[:20]!r}, which is not read")
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS or not _sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{name[:60]!r} has no shape, or no place in the file")
    item = 1 if code == "BOOL" else int(code.lstrip("BFIU")) // 8
    nbytes = item * math.prod(shape)
    if nbytes != offsets[1] - offsets[0] or nbytes > MAX_SIZE:
        raise ValueError(f"{name[:60]!r} has the shape {shape} and {offsets[1] - offsets[0]} bytes")
    return TensorSpec(code, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def identity_of(path: Path) -> str:
    """A sha256 (hex) that tells a file from others: of all its bytes, or of a large one's header.

    A header has the seal of the content; a large file without a seal is read whole.

    Raises:
        UsageError: a large file is no safetensors file.
    """
    if path.stat().st_size <= CHECKED_TO:
        return sha256_file(path)
    header = read_tensor_header(path)
    if not header.sealed:
        return sha256_file(path)
    file, _ = open_regular(path)
    with file:
        return hashlib.sha256(file.read(header.data_start)).hexdigest()

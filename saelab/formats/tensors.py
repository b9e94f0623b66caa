"""Safetensors files: the same bytes for the same tensors, sealed, and checked before allocation.

The header's entry `seal` among the metadata covers all the rest: it is the sha256 of the header
without it (JSON with sorted keys and no spaces) followed by the XXH3-128 of the data. Files without
are from before there was one, or from other tools.
"""

import hashlib
import json
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from saelab.config import UsageError
from saelab.files import replace_file
from saelab.formats.json_file import parse_json
from saelab.formats.regular import open_regular

SEAL = "seal"
DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F32": torch.float32,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""What is read; other tools' files of packed numbers are not."""
CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 2**23
MAX_DIMENSIONS = 8
MAX_SIZE = 2**62
_CHUNK = 2**24


@dataclass(frozen=True)
class TensorSpec:
    """What a header says of one tensor; `start` and `stop` count from the beginning of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class TensorHeader:
    """A header that fits its file.

    Attributes:
        path: the file.
        metadata: names to texts.
        tensors: in the order of their bytes, which leave no gaps.
        sealed: whether the file carries a seal.
    """

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorSpec]
    data_start: int
    _entries: Mapping[str, Any] = field(repr=False)

    @property
    def sealed(self) -> bool:
        """Whether the file carries a seal."""
        return SEAL in self._entries.get("__metadata__", {})

    def check_shapes(self, expected: Mapping[str, Sequence[int]]) -> None:
        """Refuse a file with other tensors than these, or of other shapes.

        Raises:
            UsageError: names the tensor.
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
        """Refuse tensors, all or those named, that do not hold floating-point numbers.

        Raises:
            UsageError: names the tensor.
        """
        for name in self.tensors if names is None else names:
            if not self.tensors[name].dtype.is_floating_point:
                raise UsageError(
                    f"{self.path}: {name[:60]} does not hold floating-point numbers but "
                    f"{str(self.tensors[name].dtype).removeprefix('torch.')}."
                )


def read_tensor_header(path: Path) -> TensorHeader:
    """The header of the safetensors file at `path`; no tensor is read.

    Raises:
        UsageError: there is no regular file, or its header is damaged or does not fit its size.
    """
    file, size = open_regular(path)
    with file:
        return _header(path, file, size)


def read_tensors(
    header: TensorHeader,
    device: torch.device | str = "cpu",
    *,
    names: Sequence[str] | None = None,
    finite: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """The tensors of a file whose header was read, all of them or those of these `names`.

    The seal is checked where all are read.

    Raises:
        UsageError: the file was changed since, does not match its seal, or a tensor named in
            `finite`, by default any, holds NaN or infinite numbers.
    """
    path = header.path
    file, size = open_regular(path)
    with file:
        again = _header(path, file, size)
        if again != header:
            raise UsageError(f"{path} was changed while it was read.")
        if header.sealed and names is None:
            check_seal(header)
        found = {}
        for name in header.tensors if names is None else names:
            tensor = _read_tensor(file, path, header.tensors[name])
            if finite is None or name in finite:
                _check_finite(path, name, tensor)
            found[name] = tensor.to(device)
    return found


def check_seal(header: TensorHeader) -> None:
    """Compare the whole file with its seal, if it has one.

    Raises:
        UsageError: it is not what was written.
    """
    if not header.sealed:
        return
    file, _ = open_regular(header.path)
    digest = xxhash.xxh3_128()
    with file:
        file.seek(header.data_start)
        while part := file.read(_CHUNK):
            digest.update(part)
    metadata = dict(header._entries["__metadata__"])
    seal = metadata.pop(SEAL)
    if seal != _seal({**header._entries, "__metadata__": metadata}, digest.digest()):
        raise UsageError(f"{header.path} was altered: its contents do not match its seal.")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a sealed safetensors file, whole or not at all; equal tensors give equal bytes."""
    replace_file(path, lambda file: [file.write(part) for part in tensor_parts(tensors, metadata)])


def tensor_parts(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """The bytes of a sealed safetensors file of these tensors, in pieces; for one's own writer."""
    # The widest first, as the format's library does, so that every tensor is aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, Any] = {}
    digest = xxhash.xxh3_128()
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        digest.update(_bytes(tensor))
    facts = dict(sorted(metadata.items()))
    seal = _seal({"__metadata__": facts, **entries}, digest.digest())
    header = {"__metadata__": {**facts, SEAL: seal}, **entries}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    yield struct.pack("<Q", len(raw)) + raw
    for name in order:
        yield _bytes(tensors[name])


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if len(flat) else memoryview(b"")


def _seal(entries: Mapping[str, Any], data_digest: bytes) -> str:
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode() + data_digest).hexdigest()


def _header(path: Path, file: FileIO, size: int) -> TensorHeader:
    raw = file.read(8)
    n = struct.unpack("<Q", raw)[0] if len(raw) == 8 else -1
    if not 0 < n <= size - 8:
        raise UsageError(f"{path} is not a whole safetensors file: its header is not all there.")
    if n > MAX_HEADER_BYTES:
        raise UsageError(f"{path} has a header of {n} bytes; at most {MAX_HEADER_BYTES} are read.")
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
    if not isinstance(code, str) or code not in DTYPES:
        raise ValueError(f"{name[:60]!r} is of the type {str(code)[:20]!r}, which is not read")
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS or not _sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{name[:60]!r} has no shape, or no place in the file")
    nbytes = DTYPES[code].itemsize
    for length in shape:
        nbytes *= length
    if nbytes != offsets[1] - offsets[0] or nbytes > MAX_SIZE:
        raise ValueError(f"{name[:60]!r} has the shape {shape} and {offsets[1] - offsets[0]} bytes")
    return TensorSpec(DTYPES[code], tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _read_tensor(file: FileIO, path: Path, spec: TensorSpec) -> Tensor:
    tensor = torch.empty(spec.shape, dtype=spec.dtype)
    view = _bytes(tensor)
    file.seek(spec.start)
    done = 0
    while done < len(view):
        n = file.readinto(view[done : done + 2**30])
        if not n:
            raise UsageError(f"{path} ended while it was read.")
        done += n
    return tensor


def _check_finite(path: Path, name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    # The least and the largest are NaN if anything is, and need no memory.
    least, largest = torch.aminmax(tensor)
    if not bool(torch.isfinite(least) & torch.isfinite(largest)):
        raise UsageError(f"{path}: {name[:60]} holds NaN or infinite numbers.")

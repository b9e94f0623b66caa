"""Safetensors files: deterministic, sealed, and checked before memory is allocated.

The metadata's entry `seal` covers everything else: it is the sha256 of the header without the seal
(JSON with sorted keys and no spaces) followed by the XXH3-128 of the data. Older files and those of
other tools have no seal.
"""

import hashlib
import json
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import IO, Any

import torch
import xxhash
from torch import Tensor

from saelab.config import UsageError
from saelab.files import replace_file
from saelab.formats.regular import open_regular
from saelab.formats.tensor_header import (
    SEAL,
    TYPES,
    TensorHeader,
    TensorSpec,
    header_of,
    read_tensor_header,
)

__all__ = [
    "TensorHeader",
    "check_seal",
    "in_order",
    "read_tensor_header",
    "read_tensors",
    "write_in_pieces",
    "write_tensors",
]

CODES: dict[torch.dtype, str] = {getattr(torch, name): code for code, name in TYPES.items()}
_CHUNK = 2**24
PIECE_BYTES = 2**26
"""Bytes of a GPU's tensor on the host at once."""
_COPIED = 2**28
"""Most bytes of a tensor that are copied to be written; each part reads the whole of a transposed
matrix."""


def read_tensors(
    header: TensorHeader,
    device: torch.device | str = "cpu",
    *,
    names: Sequence[str] | None = None,
    finite: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """The tensors of a file with this header: all, or those of these `names`.

    The seal is checked if all are read.

    Raises:
        UsageError: the file has changed, does not match its seal, or a tensor named in `finite`
            (default: any) has NaN or infinite numbers.
    """
    path = header.path
    file, size = open_regular(path)
    with file:
        again = header_of(path, file, size)
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
        UsageError: the file is damaged.
    """
    if not header.sealed:
        return
    file, _ = open_regular(header.path)
    digest = xxhash.xxh3_128()
    with file:
        file.seek(header.data_start)
        while part := file.read(_CHUNK):
            digest.update(part)
    metadata = dict(header.entries["__metadata__"])
    seal = metadata.pop(SEAL)
    if seal != _seal({**header.entries, "__metadata__": metadata}, digest.digest()):
        raise UsageError(f"{header.path} was altered: its contents do not match its seal.")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a sealed safetensors file, whole or not at all; equal tensors give equal bytes."""
    write_in_pieces(path, tensors, lambda name: _pieces(tensors[name]), metadata)


def write_in_pieces(
    path: Path,
    like: Mapping[str, Tensor],
    pieces: Callable[[str], Iterable[Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Write the file that `write_tensors` writes, without a whole tensor in memory.

    Args:
        path: where it goes.
        like: tensors of the whole ones' shapes and dtypes; the meta device will do.
        pieces: the pieces of a named tensor, row after row; called in the order of `in_order`.
        metadata: entries of the header.
    """
    entries, end = {}, 0
    for name in in_order(like):
        start, end = end, end + like[name].numel() * like[name].element_size()
        shape = list(like[name].shape)
        entry = {"dtype": CODES[like[name].dtype], "shape": shape, "data_offsets": [start, end]}
        entries[name] = entry
    facts = dict(sorted(metadata.items()))

    def write(file: IO[bytes]) -> None:
        digest = xxhash.xxh3_128()
        file.write(_header(entries, facts, "0" * len(_seal({}, b""))))
        first = file.tell()
        for name in entries:
            for data in (data for piece in pieces(name) for data in _on_host(piece)):
                digest.update(data)
                file.write(data)
        assert file.tell() == first + end
        file.seek(0)
        seal = _seal({"__metadata__": facts, **entries}, digest.digest())
        file.write(_header(entries, facts, seal))

    replace_file(path, write)


def in_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors as a file has them.

    The widest dtypes come first, as in the format's library, so that every tensor is aligned.
    """
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _pieces(tensor: Tensor) -> Iterable[Tensor]:
    """A tensor that lies in memory in order as it is; another, which is copied, in parts."""
    n_bytes = tensor.numel() * tensor.element_size()
    if tensor.is_contiguous() or n_bytes <= _COPIED:
        return [tensor]
    return tensor.split(max(1, len(tensor) * _COPIED // n_bytes))


def _header(entries: Mapping[str, Any], facts: Mapping[str, str], seal: str) -> bytes:
    header = {"__metadata__": {**facts, SEAL: seal}, **entries}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if len(flat) else memoryview(b"")


def _on_host(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor; those of a GPU in pieces, each valid until the next.

    They come through pinned memory, several times as fast as into new memory.
    """
    if not tensor.is_cuda:
        yield _bytes(tensor)
        return
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    host = torch.empty(min(len(raw), PIECE_BYTES), dtype=torch.uint8, pin_memory=True)
    for piece in raw.split(PIECE_BYTES):
        yield host[: len(piece)].copy_(piece).numpy().data


def _seal(entries: Mapping[str, Any], data_digest: bytes) -> str:
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode() + data_digest).hexdigest()


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
    # Minimum and maximum are NaN if anything is, and need no memory.
    least, largest = torch.aminmax(tensor)
    if not bool(torch.isfinite(least) & torch.isfinite(largest)):
        raise UsageError(f"{path}: {name[:60]} holds NaN or infinite numbers.")

"""The one place that opens files of other tools. None of these files is trusted.

No file can run code, and none gets more memory than its own size explains.
"""

import contextlib
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saelab.config import UsageError
from saelab.formats.json_file import MAX_CONFIG_BYTES, read_object
from saelab.formats.mapped import MAPPED_FROM, open_tensors
from saelab.formats.regular import regular_size
from saelab.formats.tensor_header import read_tensor_header
from saelab.sae.interop.contents import NamedTensors, Record

MAX_EXPANSION = 16
"""Largest ratio of unpacked arrays to the file's size; weights hardly compress."""
SLACK_BYTES = 2**20
"""Bytes granted beyond that ratio, for small files whose zeros compress well."""


def load_json(path: Path) -> Record:
    """The JSON object at `path`.

    Raises:
        UsageError: there is none, it is too large, or it is not an object.
    """
    return Record(path, read_object(path, most=MAX_CONFIG_BYTES))


def load_safetensors(path: Path) -> NamedTensors:
    """The tensors of the safetensors file at `path`.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    # Values that are not finite are refused later, where their meaning is known.
    return NamedTensors(path, open_tensors(read_tensor_header(path), finite=()))


def load_npz(path: Path) -> NamedTensors:
    """The arrays of the `.npz` archive at `path`, as float32.

    Raises:
        UsageError: there is none, it is damaged, holds anything but floating-point arrays, or
            unpacks to far more than its size.
    """
    size = regular_size(path)
    with _one_sentence(path, ".npz archive"):
        _check_npz(path, size)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    other = sorted(name for name, array in arrays.items() if array.dtype.kind != "f")
    if other:
        raise UsageError(
            f"{path}: {', '.join(map(repr, other))[:120]} does not hold floating-point numbers."
        )
    floats = {name: array.astype(np.float32, copy=False) for name, array in arrays.items()}
    return NamedTensors(path, {name: torch.from_numpy(array) for name, array in floats.items()})


def _check_npz(path: Path, size: int) -> None:
    """Check the headers first: numpy allocates what a header claims before it reads the data."""
    with zipfile.ZipFile(path) as archive:
        _check_expansion(path, size, sum(info.file_size for info in archive.infolist()))
        for info in archive.infolist():
            with archive.open(info) as member:
                if np.lib.format.read_magic(member) == (1, 0):
                    shape, _, dtype = np.lib.format.read_array_header_1_0(member)
                else:
                    shape, _, dtype = np.lib.format.read_array_header_2_0(member)
            if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > info.file_size:
                raise UsageError(
                    f"{path}: {info.filename!r} claims shape {list(shape)[:8]} "
                    f"but has {info.file_size} bytes."
                )


def load_pt(path: Path) -> NamedTensors:
    """The state dict at `path`: a flat mapping from names to tensors saved by `torch.save`.

    torch's restricted unpickler reads the pickle; it calls only the constructors of tensors. The
    tensors are views of the memory-mapped file until their sizes are checked against it; of a
    large file they stay so.

    Raises:
        UsageError: there is none, it is damaged, its pickle asks for anything but tensors, or
            they are larger than the file.
    """
    return _pt(path, stating=False)[0]


def load_pt_stating(path: Path) -> tuple[NamedTensors, Record]:
    """As `load_pt`, for a state dict that also states texts, numbers, or tables of these."""
    return _pt(path, stating=True)


def _pt(path: Path, *, stating: bool) -> tuple[NamedTensors, Record]:
    size = regular_size(path)
    with _one_sentence(path, "file of torch.save"):
        with zipfile.ZipFile(path) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise UsageError(f"{path} is compressed, which torch.save never does.")
        loaded, stated = _load_pickle(path), {}
        if stating and isinstance(loaded, dict):
            stated = {name: value for name, value in loaded.items() if _is_statement(value)}
            loaded = {name: value for name, value in loaded.items() if name not in stated}
        tensors = _flat_mapping(path, loaded)
        _check_expansion(path, size, sum(t.numel() * t.element_size() for t in tensors.values()))
        if size < MAPPED_FROM:
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        return NamedTensors(path, tensors), Record(path, stated)


def _is_statement(value: object, depth: int = 1) -> bool:
    """Whether a value is a text or a number, or a table of these."""
    if isinstance(value, dict):
        named = all(isinstance(name, str) for name in value)
        return depth > 0 and named and all(_is_statement(v, depth - 1) for v in value.values())
    return value is None or isinstance(value, str | int | float)


def _load_pickle(path: Path) -> object:
    try:
        return torch.load(  # noqa: TID251 - restricted, and the only call in saelab
            path, map_location="cpu", weights_only=True, mmap=True
        )
    except Exception as error:  # noqa: BLE001 - a hostile pickle can provoke any of them
        # torch's message recommends loading the file without the restriction; it is not passed on.
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it asks for {asked[1]}" if asked else "its pickle is damaged or not plain"
        raise UsageError(
            f"{path} is not a table of tensors: {what}, and nothing but tensors is read."
        ) from None


def _flat_mapping(path: Path, loaded: object) -> dict[str, Tensor]:
    if not isinstance(loaded, dict):
        raise UsageError(f"{path} holds a {type(loaded).__name__}, not a table of tensors.")
    for name, tensor in loaded.items():
        plain = (
            isinstance(tensor, Tensor)
            and tensor.layout == torch.strided
            and tensor.device.type == "cpu"
            and not (tensor.is_quantized or tensor.is_nested)
        )
        if not isinstance(name, str) or not plain:
            raise UsageError(
                f"{path} is not a flat table of tensors: {repr(name)[:60]} names a "
                f"{type(tensor).__name__} that is not plain."
            )
    return {name: tensor.detach() for name, tensor in loaded.items()}


def _check_expansion(path: Path, size: int, unpacked: int) -> None:
    if unpacked > MAX_EXPANSION * size + SLACK_BYTES:
        raise UsageError(f"{path} has {size} bytes but would unpack to {unpacked}.")


def _size(path: Path) -> int:
    """Bytes of a regular file; pipes and devices, which may never end, are refused."""
    if not path.exists():
        raise UsageError(f"{path} does not exist.")
    if not path.is_file():
        raise UsageError(f"{path} is not a regular file.")
    return path.stat().st_size


@contextlib.contextmanager
def _one_sentence(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # a hostile file can provoke any of them
        reason = (str(error).splitlines() or [""])[0][:160].rstrip(". ")
        raise UsageError(
            f"{path} is not a whole {kind}: {reason or type(error).__name__}."
        ) from error

"""Tensors of a safetensors file as views of it, which take memory only where they are used."""

import math
import mmap
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from saelab.config import UsageError
from saelab.formats.regular import open_regular
from saelab.formats.tensor_header import CHECKED_TO, TensorHeader, header_of
from saelab.formats.tensors import check_seal, read_tensors

MAPPED_FROM = 2**28
"""Files with fewer bytes are read whole."""
AT_ONCE = 2**26
"""Bytes that are looked at together."""
# Linux refuses a private map that is larger than the machine's memory, unless told not to reserve.
_NOT_RESERVED = getattr(mmap, "MAP_NORESERVE", 0x4000)


def open_tensors(
    header: TensorHeader, *, finite: Collection[str] | None = None
) -> dict[str, Tensor]:
    """The tensors of a file on the CPU: read, or of a large file views of it.

    Pages of a view are read when they are used, and the system takes them back when it needs
    memory. A change of a view stays in this process. The seal and the numbers are checked as by
    `read_tensors`; of a file of more than 4 GiB only its vectors are, and `saelab verify`
    checks the rest.

    Raises:
        UsageError: the file has changed, or does not pass the checks.
    """
    size = sum(spec.stop - spec.start for spec in header.tensors.values())
    if size < MAPPED_FROM:
        return read_tensors(header, finite=finite)
    tensors = _views(header)
    if size <= CHECKED_TO:
        check_seal(header)
    small = {name: t for name, t in tensors.items() if size <= CHECKED_TO or t.ndim < 2}
    check_numbers(header, small, finite)
    return tensors


def check_numbers(
    header: TensorHeader, tensors: dict[str, Tensor], finite: Collection[str] | None = None
) -> None:
    """Check that the numbers of a file are finite, piece by piece.

    Raises:
        UsageError: a tensor in `finite` (default: any) is not.
    """
    for name, tensor in tensors.items():
        if (finite is None or name in finite) and not all_finite(tensor):
            raise UsageError(f"{header.path}: {name[:60]} holds NaN or infinite numbers.")


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor has no NaN and no infinite number; without a copy of it in memory."""
    if not tensor.is_floating_point():
        return True
    # Minimum and maximum are NaN if anything is.
    ends = (torch.aminmax(part) for part in pieces(in_order_of_memory(tensor)) if part.numel())
    return all(bool(least.isfinite() & most.isfinite()) for least, most in ends)


def pieces(tensor: Tensor, n_bytes: int = AT_ONCE) -> Iterator[Tensor]:
    """The tensor's rows in order, about so many bytes at a time."""
    if tensor.ndim == 0 or tensor.numel() * tensor.element_size() <= n_bytes:
        yield tensor
        return
    row = max(1, math.prod(tensor.shape[1:]) * tensor.element_size())
    yield from tensor.split(max(1, n_bytes // row))


def in_order_of_memory(tensor: Tensor) -> Tensor:
    """A transposed matrix as the matrix that lies in memory; another tensor as it is."""
    return tensor.T if tensor.ndim == 2 and not tensor.is_contiguous() else tensor


def _views(header: TensorHeader) -> dict[str, Tensor]:
    file, size = open_regular(header.path)
    with file:
        if header_of(header.path, file, size) != header:
            raise UsageError(f"{header.path} was changed while it was read.")
        flags, protection = mmap.MAP_PRIVATE | _NOT_RESERVED, mmap.PROT_READ | mmap.PROT_WRITE
        whole = mmap.mmap(file.fileno(), size, flags=flags, prot=protection)
    views = {}
    for name, spec in header.tensors.items():
        count = math.prod(spec.shape)
        if not count:
            views[name] = torch.empty(spec.shape, dtype=spec.dtype)
            continue
        view = torch.frombuffer(whole, dtype=spec.dtype, count=count, offset=spec.start)
        # Numbers that do not lie at a multiple of their size are slow, or refused, by kernels.
        aligned = spec.start % spec.dtype.itemsize == 0
        views[name] = (view if aligned else view.clone()).view(spec.shape)
    return views

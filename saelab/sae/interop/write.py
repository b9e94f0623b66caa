"""Writing the files of another tool into a new directory."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from saelab.config import UsageError
from saelab.files import atomic_write
from saelab.formats.mapped import open_tensors, pieces
from saelab.formats.tensors import read_tensor_header, write_tensors
from saelab.lock import writing

Content = bytes | Mapping[str, Tensor]
"""What a file holds: its bytes, or the tensors of a safetensors file."""


def write_new(directory: Path, files: Mapping[str, Content]) -> None:
    """Write an SAE's files by their names, in this order; tensors without a copy in memory.

    Files of the same export may be there already, e.g. if it was interrupted.

    Raises:
        UsageError: `directory` already holds another SAE, or cannot be written to.
    """
    with writing(directory):
        for name, content in files.items():
            if (directory / name).exists() and not _holds(directory / name, content):
                raise UsageError(f"{directory} already holds an SAE; give a new directory.")
        for name, content in files.items():
            if isinstance(content, bytes):
                atomic_write(directory / name, content)
            else:
                write_tensors(directory / name, content, {"format": "pt"})


def _holds(path: Path, content: Content) -> bool:
    if isinstance(content, bytes):
        return path.read_bytes() == content
    try:
        there = open_tensors(read_tensor_header(path), finite=())
    except UsageError:
        return False
    return there.keys() == content.keys() and all(
        same_numbers(there[name], tensor) for name, tensor in content.items()
    )


def same_numbers(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and numbers; without a copy of either."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return all(torch.equal(x, y) for x, y in zip(pieces(a), pieces(b), strict=True))

"""Checkpoints in parts: each of several processes writes what it holds, and nothing is gathered.

A part is a sealed safetensors file beside the checkpoint's own, which is written last and names the
seals of all. The tensors of parts that count latents hold every N-th latent; the others are equal.
Any number of processes continues: each reads its latents from the parts that hold them.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from saelab.config import UsageError
from saelab.formats.tensor_header import SEAL
from saelab.formats.tensors import (
    TensorHeader,
    check_seal,
    read_tensor_header,
    read_tensors,
    write_tensors,
)
from saelab.shard import LatentShard
from saelab.training.spread import Spread

FORMAT = "saelab-checkpoint-part/1"
_NAME = re.compile(r"part_(\d{9,18})_\d{1,6}_of_\d{1,6}\.safetensors")


def part_path(checkpoint: Path, rank: int, world: int) -> Path:
    """Where process `rank` of `world` writes its part of a checkpoint."""
    step = checkpoint.stem.removeprefix("step_")
    return checkpoint.with_name(f"part_{step}_{rank}_of_{world}.safetensors")


def write_part(checkpoint: Path, tensors: Mapping[str, Tensor], shard: LatentShard) -> str:
    """Write what this process holds; the seal of the file."""
    path = part_path(checkpoint, shard.rank, shard.size)
    write_tensors(path, tensors, {"format": FORMAT})
    return _seal(read_tensor_header(path))


def parts_beside(checkpoints: Path) -> Iterator[tuple[str, Path]]:
    """The step and the path of every part in a directory of checkpoints."""
    for path in checkpoints.iterdir() if checkpoints.is_dir() else ():
        if (match := _NAME.fullmatch(path.name)) and not path.is_symlink():
            yield match[1], path


def read_parts(
    checkpoint: Path,
    seals: list[str],
    spread: Spread,
    own: Mapping[str, Tensor],
    device: torch.device,
) -> dict[str, Tensor]:
    """This process's tensors, from the parts of all that wrote the checkpoint.

    Args:
        checkpoint: path of the checkpoint.
        seals: seal of each part.
        spread: says which of the tensors count latents, and which latents this process holds.
        own: tensors of the shapes that this process's must have.
        device: where the result goes.

    Raises:
        UsageError: a part is missing, altered, or of another SAE.
    """
    shard, world = spread.shard, len(seals)
    latents = torch.arange(shard.rank, shard.d_sae, shard.size)
    held = {rank: (latents % world == rank).nonzero()[:, 0] for rank in range(world)}
    headers = _opened(checkpoint, seals)
    for rank in held:
        if len(held[rank]):
            check_seal(headers[rank])
        else:
            del headers[rank]
    found: dict[str, Tensor] = {}
    for rank, header in headers.items():
        part = LatentShard(rank, world, shard.d_sae)
        of_part = latents[held[rank]] // world
        for name in header.tensors:
            tensor = _read(header, name, spread, own, part)
            dim = spread.dim(name, tensor)
            if dim is None:
                found.setdefault(name, tensor.to(device))
                continue
            if name not in found:
                shape = [*tensor.shape]
                shape[dim] = len(latents)
                found[name] = tensor.new_empty(shape, device=device)
            piece = tensor.index_select(dim, of_part).to(device)
            found[name].index_copy_(dim, held[rank].to(device), piece)
    if missing := own.keys() - found.keys():
        raise UsageError(f"{checkpoint} is of another SAE: it lacks {min(missing)}.")
    return found


def _opened(checkpoint: Path, seals: list[str]) -> dict[int, TensorHeader]:
    """The headers of all parts.

    Raises:
        UsageError: one is missing, or is not the part that the checkpoint names.
    """
    headers = {}
    for rank, seal in enumerate(seals):
        header = headers[rank] = read_tensor_header(part_path(checkpoint, rank, len(seals)))
        if not header.sealed or _seal(header) != seal:
            raise UsageError(f"{header.path} is not the part that {checkpoint.name} names.")
    return headers


def _read(
    header: TensorHeader, name: str, spread: Spread, own: Mapping[str, Tensor], part: LatentShard
) -> Tensor:
    """A tensor of a part, whose shape is checked before memory is allocated.

    Raises:
        UsageError: it is of another SAE.
    """
    spec = header.tensors[name]
    like = own.get(name)
    if like is None:  # Before its first step an optimizer has no moments.
        like = spread.parameter_of(name)
    if like is None:
        raise UsageError(f"{header.path} holds a {name[:60]!r}, which is unknown.")
    shape = [*like.shape]
    if (dim := spread.dim(name, like)) is not None:
        shape[dim] = part.count(part.d_sae)
    allowed = [tuple(shape)] if name in own else [tuple(shape), ()]
    if spec.shape not in allowed or (name in own and spec.dtype != like.dtype):
        raise UsageError(f"{header.path} is of another SAE: its {name} differs.")
    return read_tensors(header, names=[name], finite=())[name]


def _seal(header: TensorHeader) -> str:
    return str(header.entries["__metadata__"].get(SEAL, ""))

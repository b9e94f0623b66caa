"""What each of the processes of a training writes into its checkpoints, and reads from them."""

from pathlib import Path

import torch
from torch import Tensor

from saelab.config import UsageError
from saelab.files import make_directory
from saelab.training.checkpoint import Checkpoint, DamagedCheckpointError
from saelab.training.parts import read_parts, write_part
from saelab.training.spread import Spread
from saelab.training.steps import Steps


def write_held(
    path: Path, steps: Steps, device: torch.device
) -> tuple[dict[str, Tensor], list[str] | None]:
    """The tensors for the checkpoint's own file, and the seals of its parts.

    Of several processes, each has written its part when the seals are known; called by all.
    """
    tensors, spread = steps.tensors(), steps.spread
    if spread is None:
        return tensors, None
    make_directory(path.parent)
    seal = write_part(path, tensors, spread.shard)
    return {}, spread.shard.tell_all(seal, device)


def read_held(
    found: Checkpoint, steps: Steps, device: torch.device
) -> tuple[dict[str, Tensor], bytes | None]:
    """What of a checkpoint this process holds, and the log; called by all processes together.

    Raises:
        DamagedCheckpointError: in all processes, if a part that one reads is damaged.
    """
    own, spread = steps.tensors(), steps.spread
    if found.parts:
        log = found.log()
        return _read_parts(found, spread or steps.alone(), own, device), log
    if spread is None:
        return found.tensors(device, own)
    # The whole may be more than one device holds.
    tensors, log = found.tensors(torch.device("cpu"), spread.expected(own))
    return spread.own(tensors, device), log


def _read_parts(
    found: Checkpoint, spread: Spread, own: dict[str, Tensor], device: torch.device
) -> dict[str, Tensor]:
    problem, tensors = "", {}
    try:
        tensors = read_parts(found.path, found.parts, spread, own, device)
    except UsageError as error:
        problem = str(error)
    # Each reads other parts, and all must go on from the same checkpoint.
    bad = torch.tensor(bool(problem), device=device)
    if spread.shard.any_all(bad) if spread.shard.size > 1 else problem:
        raise DamagedCheckpointError(problem or f"A part of {found.path} is damaged.")
    return tensors

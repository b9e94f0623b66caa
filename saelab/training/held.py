"""What each of the processes of a training writes into its checkpoints, and reads from them."""

from pathlib import Path

import torch
from torch import Tensor

from saelab.config import UsageError
from saelab.files import failure, make_directory
from saelab.training.checkpoint import Checkpoint, DamagedCheckpointError
from saelab.training.parts import read_parts, write_part
from saelab.training.steps import Steps

TOLD = 500
"""Characters in which a process tells the others its part's seal, or why there is none."""


class UnwrittenPartError(UsageError):
    """A process could not write its part of a checkpoint."""

    exit_code = 1


def write_held(
    path: Path, steps: Steps, device: torch.device
) -> tuple[dict[str, Tensor], list[str] | None]:
    """The tensors for the checkpoint's own file, and the seals of its parts.

    Of several processes, each of the first replica has written its part when the seals are known;
    called by all. A replica of one process writes no parts.

    Raises:
        UnwrittenPartError: in all processes, if one could not write its part.
    """
    tensors, spread = steps.tensors(), steps.spread
    if spread is None or spread.shard.size == 1:
        return tensors, None
    seal, problem = "", ""
    try:
        if spread.replicas.number == 0:
            make_directory(path.parent)
            seal = write_part(path, tensors, spread.shard)
    except OSError as error:
        problem = failure(error)
    # Else the others would wait for a process that has stopped, and not know why.
    own = seal or (f" {problem}" if problem else "")
    own = own.encode("ascii", "replace").decode("ascii")[:TOLD].ljust(TOLD)
    told = [each.rstrip() for each in spread.shard.tell_all(own, device)]
    for rank, each in enumerate(told):
        if each.startswith(" "):
            raise UnwrittenPartError(
                f"Process {rank} could not write its part of a checkpoint:{each}. The same command "
                "then continues from the checkpoint before."
            )
    return {}, told[: spread.shard.size]


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
        return _read_parts(found, steps, own, device), log
    if spread is None:
        return found.tensors(device, own)
    # The whole may be more than one device holds.
    tensors, log = found.tensors(torch.device("cpu"), spread.expected(own))
    return spread.own(tensors, device), log


def _read_parts(
    found: Checkpoint, steps: Steps, own: dict[str, Tensor], device: torch.device
) -> dict[str, Tensor]:
    spread = steps.spread or steps.alone()
    problem, tensors = "", {}
    try:
        tensors = read_parts(found.path, found.parts, spread, own, device)
    except UsageError as error:
        problem = str(error)
    # Each reads other parts, and all must go on from the same checkpoint.
    bad = torch.tensor(bool(problem), device=device)
    if problem if steps.spread is None else spread.shard.any_all(bad):
        raise DamagedCheckpointError(problem or f"A part of {found.path} is damaged.")
    return tensors

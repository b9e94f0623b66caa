"""Checkpoints: everything that a training needs to continue as if it had never stopped.

A checkpoint is one sealed safetensors file, checkpoints/step_N.safetensors. It holds the tensors
that a step changes, the log so far, and the rest as JSON in its metadata. It is written under a
temporary name, fsynced and renamed; the previous checkpoint stays until then. Older versions wrote
unsealed directories, step_N/ with state.json and state.safetensors; they are still read. Where
several processes hold an SAE, the tensors are in parts beside it; see `parts`.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor

from saelab.config import Config, UsageError, first_problem
from saelab.console import note
from saelab.files import make_directory, temporary_name
from saelab.formats.json_file import parse_json, read_json
from saelab.formats.tensors import TensorHeader, read_tensor_header, read_tensors, write_tensors
from saelab.training.metrics import Interval
from saelab.training.parts import parts_beside
from saelab.training.spread import MOMENT

FORMAT = "saelab-checkpoint/2"
IN_PARTS = "saelab-checkpoint/3"
MAX_PARTS = 1 << 16
LOG = "log"
FREE = {"n_tokens", "log_every", "checkpoint_every", "keep_at", "keep_every", "keep_state"}
"""Options that do not affect the steps already done; a run may continue with other values."""
PATHS = {"activations", "beside", "init_from"}
"""Options that are paths: different spellings may lead to the same thing."""
_NAME = re.compile(r"step_(\d{1,18})(\.safetensors)?")

Place = dict[str, int | str]
Taken = TypeVar("Taken")


class DamagedCheckpointError(UsageError):
    """A checkpoint that training cannot continue from; an earlier one may be whole."""


class CheckpointState(Config):
    """The state in a checkpoint that is not tensors."""

    step: int = Field(ge=0)
    """Number of optimizer steps done."""
    batches: Place
    """The position of the stream of batches."""
    by: str = "autograd"
    """How the steps were done (`fused` or `autograd`). Old checkpoints do not say."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the training; they tell whether a checkpoint belongs to another run."""
    n_steps: int | None = None
    """Steps of the whole run, as planned at that time."""
    rate: float | None = None
    """The learning rate of the last step."""
    rise: tuple[int, float] | None = None
    """See `TrainingState.rise`."""
    interval: Interval | None = None
    """The sums since the last line of the log."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose header matches its state; its tensors are not read yet."""

    path: Path
    state: CheckpointState
    header: TensorHeader
    parts: list[str]
    """The seals of its parts; none if the tensors are in its own file."""

    def log(self) -> bytes | None:
        """The log of a checkpoint in parts, whose own file has no other tensor.

        Raises:
            DamagedCheckpointError: the file does not match its seal.
        """
        return self.tensors(torch.device("cpu"), {})[1]

    def tensors(
        self, device: torch.device, expected: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], bytes | None]:
        """Its tensors on `device`, and the log; None if there is no log.

        Raises:
            DamagedCheckpointError: the file does not match its seal, or its tensors have other
                names, shapes or dtypes than those `expected`.
        """
        there = self.header.tensors
        shapes = {tensor.shape for tensor in expected.values()}
        for name, tensor in expected.items():
            spec = there.get(name)
            if spec is None or (spec.shape, spec.dtype) != (tuple(tensor.shape), tensor.dtype):
                raise DamagedCheckpointError(f"{self.path} is of another SAE: its {name} differs.")
        for name in there.keys() - expected.keys() - {LOG}:
            # Before its first step an optimizer has no moments.
            if not MOMENT.fullmatch(name) or there[name].shape not in {(), *shapes}:
                raise DamagedCheckpointError(
                    f"{self.path} holds a {name[:60]!r}, which is unknown."
                )
        try:
            # A threshold that was not calibrated yet is NaN.
            found = read_tensors(self.header, device, finite=())
        except UsageError as error:
            raise DamagedCheckpointError(str(error)) from None
        log = found.pop(LOG, None)
        return found, None if log is None else log.cpu().numpy().tobytes()


def save_checkpoint(
    directory: Path,
    tensors: Mapping[str, Tensor],
    state: CheckpointState,
    log: bytes | None,
    *,
    before: Path | None,
    parts: list[str] | None = None,
) -> Path:
    """Write a checkpoint below `directory` and return its path; only it and `before` are kept.

    Equal trainings write equal bytes. With `parts`, the seals of files that hold the tensors and
    are there already, this file names them.
    """
    path = checkpoint_path(directory, state.step)
    make_directory(directory)
    if path.is_dir():
        _remove(path)
    held = {name: value.detach() for name, value in tensors.items()}
    if log is not None:
        held[LOG] = torch.from_numpy(np.frombuffer(log, np.uint8).copy())
    values = json.dumps(state.model_dump(mode="json"), allow_nan=False)
    facts = {"format": FORMAT, "state": values}
    if parts is not None:
        facts |= {"format": IN_PARTS, "parts": json.dumps(parts)}
    write_tensors(path, held, facts)
    # Damaged checkpoints are not counted, so that two whole ones are kept.
    for older in _checkpoints(directory):
        if older not in (path, before):
            _remove(older)
    _remove_parts(directory, [path] if before is None else [path, before])
    return path


def checkpoint_path(directory: Path, step: int) -> Path:
    """The path of the checkpoint of a step."""
    return directory / f"step_{step:09d}.safetensors"


def take_newest(directory: Path, take: Callable[[Checkpoint], Taken]) -> Taken | None:
    """`take` applied to the newest whole checkpoint below `directory`; None if there is none.

    Raises:
        UsageError: there are checkpoints, but all are damaged.
    """
    if os.path.lexists(directory) and not directory.is_dir():
        raise UsageError(f"{directory} is no directory, and checkpoints go there; remove it.")
    problem = ""
    for path in _checkpoints(directory):
        try:
            checkpoint = _open(path)
            taken = take(checkpoint)
        except DamagedCheckpointError as error:
            said = str(error).rstrip(".")
            problem = problem or (said if str(path) in said else f"{path}: {said}")
            continue
        if problem:
            note(f"{problem}; training continues from step {checkpoint.state.step}.")
        return taken
    if problem:
        raise UsageError(
            f"{problem}, and no other checkpoint is whole; remove {directory} to train from the "
            "beginning."
        )
    return None


def remove_checkpoints(directory: Path, *, keep: bool = False) -> None:
    """Remove checkpoints that a training no longer needs; `keep` keeps the newest.

    Other files are not touched.
    """
    with contextlib.suppress(OSError):  # The run is whole with them, too.
        found = _checkpoints(directory)
        for path in found[keep:]:
            _remove(path)
        _remove_parts(directory, found[:keep])
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put the tensors of `optimizer_tensors` back.

    Raises:
        DamagedCheckpointError: a moment has no parameter, or another shape than its parameter.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if (match := MOMENT.fullmatch(key)) is None:
            continue
        index, name = int(match[1]), match[2]
        if index >= len(parameters) or value.shape not in ((), parameters[index].shape):
            raise DamagedCheckpointError(f"{key} fits no parameter")
        # Adam keeps its step count on the CPU; the moments follow the parameters.
        states.setdefault(index, {})[name] = value.cpu() if name == "step" else value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def _checkpoints(directory: Path) -> list[Path]:
    """Everything named like a checkpoint, the newest first; other files may lie beside them."""
    found = [(int(m[1]), path) for path, m in _named(directory) if not path.is_symlink()]
    return [path for _, path in sorted(found, reverse=True)]


def _named(directory: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    for path in directory.iterdir() if directory.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        # A file with the suffix, or a directory without it.
        if match and path.is_dir() == (match[2] is None):
            yield path, match


def _open(path: Path) -> Checkpoint:
    try:
        if path.is_dir():
            header = read_tensor_header(path / "state.safetensors")
            values = read_json(path / "state.json")
        else:
            header = read_tensor_header(path)
            if header.metadata.get("format") not in {FORMAT, IN_PARTS} or not header.sealed:
                raise DamagedCheckpointError(f"{path} is no checkpoint of this version.")
            values = parse_json(header.metadata.get("state", "").encode(), path)
        state = CheckpointState.model_validate(values)
        seals = _seals(header)
    except ValidationError as error:
        raise DamagedCheckpointError(f"{path} is damaged: {first_problem(error)}.") from None
    except UsageError as error:
        raise DamagedCheckpointError(str(error)) from None
    return Checkpoint(path, state, header, seals)


def _seals(header: TensorHeader) -> list[str]:
    """The seals of the parts that a checkpoint's file names."""
    if header.metadata.get("format") != IN_PARTS:
        return []
    seals = parse_json(header.metadata.get("parts", "").encode(), header.path)
    if not isinstance(seals, list) or not all(isinstance(seal, str) for seal in seals):
        raise DamagedCheckpointError(f"{header.path} does not name its parts.")
    if not 1 < len(seals) <= MAX_PARTS:
        raise DamagedCheckpointError(f"{header.path} names {len(seals)} parts.")
    return seals


def _remove_parts(directory: Path, kept: Sequence[Path]) -> None:
    """Remove the parts of other checkpoints than these."""
    steps = {path.stem.removeprefix("step_") for path in kept}
    for step, path in parts_beside(directory):
        if step not in steps:
            path.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """Remove a checkpoint in one step, so that a kill leaves no part of it."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    aside = temporary_name(path)
    path.rename(aside)
    shutil.rmtree(aside)

"""Checkpoints: everything a training needs to continue as if it had never stopped."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saelab.files import atomic_write_json, fsync_directory, temporary_name

STEP = "step_{:09d}"


def save_checkpoint(
    directory: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]
) -> None:
    """Write checkpoint `step` below `directory`, then remove the older ones."""
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / STEP.format(step)
    temporary = temporary_name(final)
    temporary.mkdir()
    try:
        contiguous = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
        save_file(contiguous, temporary / "state.safetensors")
        atomic_write_json(temporary / "state.json", state)
        fsync_directory(temporary)
        temporary.replace(final)
        fsync_directory(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for older in directory.glob("step_*"):
        if older != final:
            shutil.rmtree(older)


def load_checkpoint(
    directory: Path, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint below `directory`, or None if there is none."""
    newest = max(directory.glob("step_*"), default=None)
    if newest is None:
        return None
    state = json.loads((newest / "state.json").read_bytes())
    return load_file(newest / "state.safetensors", device=str(device)), state


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            # Adam keeps its step count on the CPU; the moments follow the parameters.
            states.setdefault(int(index), {})[name] = value.cpu() if name == "step" else value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})

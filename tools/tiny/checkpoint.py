"""Checkpoints of the tiny model's training: one safetensors file, its step in the header."""

from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

from saelab.files import atomic_write

FILE = "checkpoint.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def save_checkpoint(
    out: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Replace the checkpoint of `out` by the state after `step` steps."""
    state: dict[str, torch.Tensor] = {}
    for name, weight in model.named_parameters():
        state[f"weight/{name}"] = weight.detach().cpu().contiguous()
        for moment in _MOMENTS:
            state[f"{moment}/{name}"] = optimizer.state[weight][moment].cpu().contiguous()
    atomic_write(out / FILE, safetensors.torch.save(state, metadata={"step": str(step)}))


def load_checkpoint(out: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore the checkpoint of `out`, if there is one; returns the number of its step."""
    path = out / FILE
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
        for name, weight in model.named_parameters():
            weight.data.copy_(file.get_tensor(f"weight/{name}"))
            moments = {key: file.get_tensor(f"{key}/{name}").to(weight.device) for key in _MOMENTS}
            fused = bool(optimizer.defaults["fused"])
            count = torch.tensor(float(step), device=weight.device if fused else "cpu")
            optimizer.state[weight] = {"step": count, **moments}
    return step

"""Which operations Triton's kernels can do, and when a device is done."""

import importlib.util
from functools import cache

import torch
from torch import Tensor

from saelab.kernels.sizes import fits_batch_select

MAX_K = 512
"""Largest k of the kernel that selects k entries per row."""
TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that kernels read. They add in float32, so float64 is left to torch."""


def runs_triton(tensor: Tensor) -> bool:
    """Whether the tensor's device and dtype suit the kernels."""
    return tensor.is_cuda and tensor.dtype in TYPES and has_triton()


def runs_select(pre_acts: Tensor, k: int) -> bool:
    """Whether the kernel that selects k per row can run; its result has no autograd graph."""
    wanted = not (pre_acts.requires_grad and torch.is_grad_enabled())
    return wanted and pre_acts.ndim == 2 and 0 < k <= MAX_K and runs_triton(pre_acts)


def runs_batch_select(pre_acts: Tensor, n: int) -> bool:
    """Whether the kernels that select n of a whole batch can run; the result has no graph."""
    wanted = not (pre_acts.requires_grad and torch.is_grad_enabled())
    batch, d_sae = pre_acts.shape
    fits = 0 < n <= pre_acts.numel() and fits_batch_select(batch, d_sae, n)
    return wanted and fits and runs_triton(pre_acts)


def finish(device: torch.device) -> None:
    """Wait until the device has done all that was launched, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@cache
def has_triton() -> bool:
    """Whether the triton package is installed."""
    return importlib.util.find_spec("triton") is not None

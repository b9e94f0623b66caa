"""The threshold that follows a batch-level selection during training."""

import torch
from jaxtyping import Float
from torch import Tensor

EMA = 0.999


def follow_smallest_(threshold: Float[Tensor, ""], values: Float[Tensor, "*entry"]) -> None:
    """Move `threshold` towards the smallest active magnitude: a running mean, NaN at first.

    A batch without active codes does not change it. It never waits for the device.
    """
    size = values.abs()
    smallest = torch.where(size > 0, size, torch.inf).min()
    running = EMA * threshold + (1 - EMA) * smallest
    new = torch.where(threshold.isnan(), smallest, running)
    threshold.copy_(torch.where(smallest.isinf(), threshold, new))

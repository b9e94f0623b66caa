"""The threshold that follows a selection over whole batches while it trains."""

import torch
from jaxtyping import Float
from torch import Tensor

EMA = 0.999


def follow_smallest_(threshold: Float[Tensor, ""], values: Float[Tensor, "*entry"]) -> None:
    """Move `threshold` towards the smallest magnitude that fires: a running mean, NaN at first.

    A batch in which nothing fires leaves it. Never waits for the device.
    """
    size = values.abs()
    smallest = torch.where(size > 0, size, torch.inf).min()
    running = EMA * threshold + (1 - EMA) * smallest
    new = torch.where(threshold.isnan(), smallest, running)
    threshold.copy_(torch.where(smallest.isinf(), threshold, new))

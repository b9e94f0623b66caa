"""The thresholds that follow a batch-level selection during training."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

EMA = 0.999
EMA_OF_EACH = 0.99
"""A latent's own threshold has fewer batches to follow: those in which the latent fires."""


def follow_smallest_(threshold: Float[Tensor, ""], values: Float[Tensor, "*entry"]) -> None:
    """Move `threshold` towards the smallest active magnitude: a running mean, NaN at first.

    A batch without active codes does not change it. It never waits for the device.
    """
    size = values.abs()
    smallest = torch.where(size > 0, size, torch.inf).min()
    running = EMA * threshold + (1 - EMA) * smallest
    new = torch.where(threshold.isnan(), smallest, running)
    threshold.copy_(torch.where(smallest.isinf(), threshold, new))


def follow_smallest_of_each_(
    thresholds: Float[Tensor, " d_sae"],
    values: Float[Tensor, "*entry"],
    indices: Int[Tensor, "*entry"],
) -> None:
    """Move each latent's threshold towards its smallest positive code: running means, NaN at first.

    A batch in which a latent does not fire does not change its threshold. It never waits for the
    device.
    """
    values, indices = values.detach().flatten(), indices.flatten().long()
    smallest = torch.full_like(thresholds, torch.inf)
    sizes = torch.where(values > 0, values.to(thresholds.dtype), torch.inf)
    smallest = smallest.scatter_reduce(0, indices, sizes, "amin")
    running = EMA_OF_EACH * thresholds + (1 - EMA_OF_EACH) * smallest
    new = torch.where(thresholds.isnan(), smallest, running)
    thresholds.copy_(torch.where(smallest.isinf(), thresholds, new))

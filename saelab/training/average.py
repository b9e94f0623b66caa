"""The average of an SAE's weights over its training, recent steps weighing most (EMA)."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from saelab.sae.base import AbstractSAE


class WeightAverage:
    """mean = sum over steps s = 1..t of (1 - d) d^(t-s) w_s / (1 - d^t), for a decay d.

    w_s are the weights after step s. The divisor corrects the bias as Adam does for its moments, so
    the initial weights do not enter; after one step the mean is w_1. The update is mean += (1 - d)
    / (1 - d^t) * (w_t - mean). It never waits for the device.

    Attributes:
        means: the averages by the parameter's name, in float32.
    """

    def __init__(self, decay: float, weights: Mapping[str, Tensor]) -> None:
        self.decay = decay
        self.means = {
            name: torch.zeros_like(value, dtype=torch.float32, requires_grad=False)
            for name, value in weights.items()
        }

    @classmethod
    def of(cls, decay: float | None, weights: Mapping[str, Tensor]) -> "WeightAverage | None":
        """An average before the first step; None if no decay is given."""
        return None if decay is None else cls(decay, weights)

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], step: int, scale: Tensor | None = None) -> None:
        """Add the weights of one step to the average.

        Args:
            weights: the weights by name.
            step: the number of the step, from 1.
            scale: factors for the rows of W_dec, applied first; None for no scaling.
        """
        share = (1 - self.decay) / (1 - self.decay**step)
        for name, value in weights.items():
            if name == "W_dec" and scale is not None:
                # No scaled copy of the atoms is made: atoms may take gigabytes.
                self.means[name].mul_(1 - share).addcmul_(value, scale[:, None], value=share)
            else:
                self.means[name].lerp_(value, share)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors for a checkpoint."""
        return {f"ema.{name}": mean for name, mean in self.means.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from the `tensors` of a checkpoint."""
        for name, mean in self.means.items():
            mean.copy_(tensors[f"ema.{name}"])


@torch.no_grad()
def with_mean_weights(sae: AbstractSAE, means: Mapping[str, Tensor]) -> AbstractSAE:
    """A copy of `sae` with these weights, with unit atoms if training keeps atoms unit."""
    out = copy.deepcopy(sae)
    for name, value in means.items():
        out.get_parameter(name).copy_(value)
    out.restore_norms()
    return out

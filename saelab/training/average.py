"""The mean of an SAE's weights over its training, recent ones counting most (EMA)."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from saelab.sae.base import AbstractSAE


class WeightAverage:
    """mean = sum over steps s = 1..t of (1 - d) d^(t-s) w_s / (1 - d^t), for a decay d.

    w_s are the weights after step s. The divisor corrects the bias as Adam corrects its moments',
    so the weights before the first step have no part in it; after one step the mean is w_1. It is
    kept as it is, by mean += (1 - d) / (1 - d^t) * (w_t - mean): nothing waits for the device.

    Attributes:
        means: by the parameter's name, in float32.
    """

    def __init__(self, decay: float, weights: Mapping[str, Tensor]) -> None:
        self.decay = decay
        self.means = {
            name: torch.zeros_like(value, dtype=torch.float32, requires_grad=False)
            for name, value in weights.items()
        }

    @classmethod
    def of(cls, decay: float | None, weights: Mapping[str, Tensor]) -> "WeightAverage | None":
        """An average before the first step, if there is a decay."""
        return None if decay is None else cls(decay, weights)

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], step: int, scale: Tensor | None = None) -> None:
        """Take in the weights after a step.

        Args:
            weights: by name.
            step: the number of the step, from 1.
            scale: what rows of W_dec are to be multiplied by first; None: they are right.
        """
        share = (1 - self.decay) / (1 - self.decay**step)
        for name, value in weights.items():
            if name == "W_dec" and scale is not None:
                # No atoms are made on the way: they may be gigabytes.
                self.means[name].mul_(1 - share).addcmul_(value, scale[:, None], value=share)
            else:
                self.means[name].lerp_(value, share)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        return {f"ema.{name}": mean for name, mean in self.means.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue where `tensors` were taken."""
        for name, mean in self.means.items():
            mean.copy_(tensors[f"ema.{name}"])


@torch.no_grad()
def with_mean_weights(sae: AbstractSAE, means: Mapping[str, Tensor]) -> AbstractSAE:
    """A copy of `sae` with these weights, its atoms unit where training keeps them so."""
    out = copy.deepcopy(sae)
    for name, value in means.items():
        out.get_parameter(name).copy_(value)
    out.restore_norms()
    return out

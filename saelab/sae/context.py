"""The state of a training that its loss depends on."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor


@dataclass(frozen=True)
class LossContext:
    """What a loss needs beside the batch.

    Attributes:
        total_variance: V = E||x - E x||^2 over the store, x being what is reconstructed. Losses are
            divided by V, so learning rates and coefficients carry over between layers and models.
        dead: `[d_sae]`, which latents are dead; None while no latent is.
        step: 0-based index of the optimizer step.
        n_steps: optimizer steps of the whole run.
        seed: the run's seed.
    """

    total_variance: float
    dead: Bool[Tensor, " d_sae"] | None = None
    step: int = 0
    n_steps: int = 1
    seed: int = 0

    @property
    def progress(self) -> float:
        """The share of the run that is done, in [0, 1)."""
        return self.step / self.n_steps

    def risen(self, share: float) -> float:
        """The factor of a weight that rises linearly from 0 to 1 over this share of the run."""
        return min(1.0, self.progress / max(share, 1e-12))

    def generator(self) -> torch.Generator:
        """A generator for this step, from seed and step only, so that a resumed run repeats it."""
        # Odd multipliers keep neighbouring seeds and steps apart.
        mixed = (self.seed * 0x9E3779B97F4A7C15 + self.step * 0xBF58476D1CE4E5B9) % 2**63
        return torch.Generator().manual_seed(mixed)

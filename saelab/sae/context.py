"""Where a training stands, as far as its loss must know."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor


@dataclass(frozen=True)
class LossContext:
    """What a loss must know beside the batch.

    Attributes:
        total_variance: V = E||x - E x||^2 over the store, of what is reconstructed; losses are
            divided by it, so that learning rates and coefficients carry over between layers and
            models.
        dead: which latents have not fired for long; None while none has.
        step: 0-based index of the optimizer step.
        n_steps: of the whole run.
        seed: of the run.
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
        """What counts of a weight that rises linearly from zero over this share of the run."""
        return min(1.0, self.progress / max(share, 1e-12))

    def generator(self) -> torch.Generator:
        """Randomness of this step, a function of seed and step: a resumed run repeats it."""
        # Odd multipliers keep neighbouring seeds and steps apart.
        mixed = (self.seed * 0x9E3779B97F4A7C15 + self.step * 0xBF58476D1CE4E5B9) % 2**63
        return torch.Generator().manual_seed(mixed)

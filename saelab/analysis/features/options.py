"""How much evidence to collect."""

from dataclasses import dataclass

import torch

from saelab.activations.harvest import HarvestOptions
from saelab.config import UsageError


@dataclass(frozen=True)
class FeatureOptions:
    """How much evidence to collect for each latent.

    Attributes:
        n_tokens: tokens of the run's training text to read.
        n_examples: number of examples of each kind: strongest, most negative, random.
        reach: tokens of context on each side of an example's peak.
        batch_size: contexts per forward pass; None: as many as a harvest runs at once.
        seed: decides which firings and which silent contexts are sampled.
        n_strata: number of strata: parts of equal size into which a latent's firings are divided by
            |activation|.
        n_per_stratum: examples sampled from each stratum.
        n_silent: contexts without a firing: this many near misses, and this many random ones.
        near_miss_ranks: number of latents just below a token's selection that may count as near
            misses; 0 keeps none.
        checkpoint_every: tokens between checkpoints; an interrupted pass continues from the last
            one.
    """

    n_tokens: int = 500_000
    n_examples: int = 20
    reach: int = 16
    batch_size: int | None = None
    seed: int = 0
    n_strata: int = 5
    n_per_stratum: int = 5
    n_silent: int = 5
    near_miss_ranks: int = 8
    checkpoint_every: int = 32_768

    def __post_init__(self) -> None:
        positive = ("n_tokens", "n_examples", "batch_size", "n_strata", "checkpoint_every")
        for name in (*positive, "reach", "n_per_stratum", "n_silent"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} is below 1, the least it can be.")
        if self.near_miss_ranks < 0:
            raise UsageError(f"near_miss_ranks={self.near_miss_ranks} is negative; 0 keeps none.")

    def contexts_at_once(self, device: torch.device, context_length: int) -> int:
        """Contexts per forward pass: `batch_size`, or by default what suits the device."""
        passes = HarvestOptions(self.n_tokens, batch_size=self.batch_size)
        return passes.contexts_at_once(device, context_length)

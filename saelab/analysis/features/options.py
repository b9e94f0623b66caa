"""How much evidence to keep."""

from dataclasses import dataclass

from saelab.config import UsageError


@dataclass(frozen=True)
class FeatureOptions:
    """How much evidence to keep for each latent.

    Attributes:
        n_tokens: tokens of the run's training text to read.
        n_examples: strongest, most negative and random examples, of each kind.
        reach: tokens of context on either side of an example's peak.
        batch_size: contexts per forward pass.
        seed: decides which firings and which silent contexts are sampled.
        n_strata: parts of equal population that a latent's firings are cut into by |activation|.
        n_per_stratum: examples sampled from each of them.
        n_silent: contexts without a firing: as many near misses, and as many at random.
        near_miss_ranks: how many latents just below a token's selection may count as near misses;
            0 keeps none and spares the encoder's second pass.
        checkpoint_every: tokens between checkpoints; an interrupted pass continues at the last.
    """

    n_tokens: int = 500_000
    n_examples: int = 20
    reach: int = 16
    batch_size: int = 32
    seed: int = 0
    n_strata: int = 5
    n_per_stratum: int = 5
    n_silent: int = 5
    near_miss_ranks: int = 8
    checkpoint_every: int = 32_768

    def __post_init__(self) -> None:
        positive = ("n_tokens", "n_examples", "batch_size", "n_strata", "checkpoint_every")
        for name in (*positive, "reach", "n_per_stratum", "n_silent"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} is below 1, the least it can be.")
        if self.near_miss_ranks < 0:
            raise UsageError(f"near_miss_ranks={self.near_miss_ranks} is negative; 0 keeps none.")

"""From a token of the vocabulary to the latents that fire on it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int, Integer
from numpy import ndarray

from saelab.analysis.features.firings import (
    Firings,
    first_of_each,
    largest_first,
    new_groups,
    starts,
)

N_LATENTS = 12


@dataclass(frozen=True)
class Postings:
    """Pairs of a token and a latent that fires on it.

    Attributes:
        n: number of the token's occurrences on which the latent fires.
        mean: mean |value| over these.
        score: 2 n / (occurrences of the token + firings of the latent).
    """

    token: Int[ndarray, " pair"]
    latent: Int[ndarray, " pair"]
    n: Int[ndarray, " pair"]
    mean: Float32[ndarray, " pair"]
    score: Float32[ndarray, " pair"]

    def take(self, which: Integer[ndarray, " kept"]) -> "Postings":
        """Some of the pairs."""
        return Postings(
            self.token[which], self.latent[which], self.n[which], self.mean[which],
            self.score[which],
        )  # fmt: skip

    def __add__(self, other: "Postings") -> "Postings":
        return Postings(
            *(
                np.concatenate([mine, theirs])
                for mine, theirs in zip(self._columns(), other._columns(), strict=True)
            )
        )

    def _columns(self) -> tuple[ndarray, ...]:
        return self.token, self.latent, self.n, self.mean, self.score


class TokenIndex:
    """For each token, its best detectors among the latents, which stream past.

    Latents are ranked by their F1 as detectors of the token. By number of firings alone, latents
    that fire on everything would be first in every list.
    """

    def __init__(self, row_token: Integer[ndarray, " row"], d_vocab: int) -> None:
        self.row_token = row_token
        self.occurs = np.bincount(row_token, minlength=d_vocab)
        none = np.zeros(0, dtype=np.int64)
        nothing = np.zeros(0, dtype=np.float32)
        self.best = Postings(none, none, none, nothing, nothing)

    def add(self, new: Postings) -> None:
        """Add all pairs of some latents."""
        # Pairs that cannot enter their token's list are dropped before sorting.
        worst = np.full(len(self.occurs), -np.inf, dtype=np.float32)
        full = np.bincount(self.best.token, minlength=len(self.occurs)) == N_LATENTS
        lowest = np.full(len(self.occurs), np.inf, dtype=np.float32)
        np.minimum.at(lowest, self.best.token, self.best.score)
        worst[full] = lowest[full]
        pool = self.best + new.take(np.flatnonzero(new.score > worst[new.token]))
        kept = first_of_each(pool.token, largest_first(pool.score), len(self.occurs), N_LATENTS)
        self.best = pool.take(kept[kept >= 0])

    def postings(self, firings: Firings) -> Postings:
        """The pairs of these latents, which are all that these firings have."""
        token = self.row_token[firings.row].astype(np.int64)
        pair = token * firings.n_latents + firings.latent
        order = np.argsort(pair, kind="stable")
        begins = np.flatnonzero(new_groups(pair[order]))
        n = np.diff(begins, append=len(pair))
        size = np.abs(firings.value[order]).astype(np.float64)
        total = np.add.reduceat(size, begins) if len(begins) else size
        token, latent = np.divmod(pair[order][begins], firings.n_latents)
        score = 2 * n / (self.occurs[token] + firings.counts[latent])
        mean = (total / n).astype(np.float32)
        return Postings(token, latent + firings.first, n, mean, score.astype(np.float32))

    def arrays(self) -> dict[str, ndarray]:
        """The datasets of the group index."""
        best = self.best
        return {
            "index/start": starts(np.bincount(best.token, minlength=len(self.occurs))),
            "index/latents": best.latent.astype(np.uint32),
            "index/n": best.n.astype(np.uint32),
            "index/mean": best.mean,
            "index/f1": best.score.astype(np.float16),
        }

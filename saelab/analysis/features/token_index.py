"""From a token of the vocabulary to the latents that fire on it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int, Integer
from numpy import ndarray

from saelab.analysis.features.firings import (
    Firings,
    by_group,
    first_of_each,
    largest_first,
    new_groups,
    starts,
)

N_LATENTS = 12
MERGED = 2**20
"""Pairs that wait to be compared with the best: to merge them costs a sort of the whole index."""


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
        self._best = Postings(none, none, none, nothing, nothing)
        self._worst = np.full(d_vocab, -np.inf, dtype=np.float32)
        self._waiting: list[Postings] = []

    def add(self, new: Postings) -> None:
        """Add the pairs of some latents, which follow those added before."""
        self._waiting.append(new)
        if sum(len(some.token) for some in self._waiting) >= MERGED:
            self._merge()

    def _merge(self) -> None:
        pool = sum(self._waiting, self._best)
        kept = first_of_each(pool.token, largest_first(pool.score), len(self.occurs), N_LATENTS)
        self._best, self._waiting = pool.take(kept[kept >= 0]), []
        full = kept[:, -1] >= 0
        worst = self._worst.copy()
        worst[full] = pool.score[kept[full, -1]]
        self._worst = worst

    def postings(self, firings: Firings) -> Postings:
        """Those pairs of these latents that may be among their tokens' best.

        These firings must be all that the latents have. Several threads may call this.
        """
        token = self.row_token[firings.row].astype(np.int64)
        order = by_group(token, len(self.occurs))  # Firings are in the order of latents.
        pair = (token * firings.n_latents + firings.latent)[order]
        begins = np.flatnonzero(new_groups(pair))
        n = np.diff(begins, append=len(pair))
        token, latent = np.divmod(pair[begins], firings.n_latents)
        score = (2 * n / (self.occurs[token] + firings.counts[latent])).astype(np.float32)
        size = np.abs(firings.value[order]).astype(np.float64)
        total = np.add.reduceat(size, begins) if len(begins) else size
        mean = (total / n).astype(np.float32)
        # An equal score is not enough: the earlier latent stays.
        may = np.flatnonzero(score > self._worst[token])
        return Postings(token, latent + firings.first, n, mean, score).take(may)

    def arrays(self) -> dict[str, ndarray]:
        """The datasets of the group index."""
        self._merge()
        best = self._best
        return {
            "index/start": starts(np.bincount(best.token, minlength=len(self.occurs))),
            "index/latents": best.latent.astype(np.uint32),
            "index/n": best.n.astype(np.uint32),
            "index/mean": best.mean,
            "index/f1": best.score.astype(np.float16),
        }

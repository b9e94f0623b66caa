"""Which contexts the model reads for each pool of live rows; the next pool's are read ahead."""

import sys
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Int

from saelab.activations import POOL_ROWS
from saelab.activations.corpus import Corpus
from saelab.activations.forward import row_mask
from saelab.activations.order import permutation
from saelab.config import UsageError
from saelab.lm.protocol import ActivationSource

RUN_CONTEXTS = 8
"""Contexts read together: neighbours in the text, far from the pool's other contexts."""


@dataclass(frozen=True)
class LiveOptions:
    """Options of live activations.

    Attributes:
        seed: decides the order.
        first: index of the first context that is used, e.g. because a store has those before.
        forward_contexts: contexts per forward pass, at most; default: `pass_contexts`.
        pool_rows: about how many rows are shuffled together: those of this many positions.
        first_position: rows at earlier positions of their contexts are not served.
    """

    seed: int = 0
    first: int = 0
    forward_contexts: int | None = None
    pool_rows: int = POOL_ROWS
    first_position: int = 0


@dataclass(frozen=True)
class Passed:
    """Contexts of one forward pass, and which of their positions are rows."""

    contexts: Int[np.ndarray, " context"]
    tokens: Int[np.ndarray, "context pos"]
    mask: Bool[np.ndarray, "context pos"]


@dataclass(frozen=True)
class PoolText:
    """A pool's forward passes.

    Attributes:
        order: the rows in the order of serving, by their place in the order of reading.
    """

    passes: list[Passed]
    order: Int[np.ndarray, " row"]

    @property
    def counts(self) -> list[int]:
        """Rows of each pass."""
        return [int(each.mask.sum()) for each in self.passes]


class LiveText:
    """The text of pools: runs of contexts from all over it, or in order if it is endless.

    Args:
        pool_runs: runs of `RUN_CONTEXTS` contexts in a pool.
        most_passes: forward passes of a pool, or fewer if it has fewer contexts.

    Raises:
        UsageError: the corpus has no context from `options.first` on.
    """

    def __init__(
        self,
        lm: ActivationSource,
        corpus: Corpus,
        options: LiveOptions,
        *,
        pool_runs: int,
        most_passes: int,
    ) -> None:
        self._lm, self._corpus, self._options = lm, corpus, options
        self._limit = None if corpus.endless else corpus.available(sys.maxsize)
        if self._limit is not None and self._limit <= options.first:
            raise UsageError(f"The text has {self._limit} contexts, none from {options.first} on.")
        self.pool_runs = pool_runs
        self.most_passes = min(most_passes, pool_runs * RUN_CONTEXTS)
        self._runs_of = lru_cache(maxsize=1)(self._epoch_runs)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="live-text")
        self._ahead: tuple[int, Future[PoolText]] | None = None

    def pool(self, number: int) -> PoolText:
        """A pool's text; a thread then reads the next one's, for which a GPU would wait."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            wait([ahead[1]])  # One thread at a time reads the text.
        if ahead is not None and ahead[0] == number:
            found = ahead[1].result()
        else:
            found = self._read_pool(number)
        self._ahead = number + 1, self._thread.submit(self._read_pool, number + 1)
        return found

    def read(self, contexts: Int[np.ndarray, " context"]) -> Passed:
        """These contexts, and which of their positions are rows."""
        cuts = np.flatnonzero(np.diff(contexts) != 1) + 1
        parts = [self._corpus.read(int(s[0]), int(s[-1]) + 1) for s in np.split(contexts, cuts)]
        mask = np.concatenate([row_mask(self._lm, part.tokens, part.columns) for part in parts])
        mask[:, : self._options.first_position] = False
        return Passed(contexts, np.concatenate([part.tokens for part in parts]), mask)

    def contexts(self, pool: int) -> list[Int[np.ndarray, " context"]]:
        """The contexts of a pool, grouped by forward pass."""
        size, first, limit = RUN_CONTEXTS, self._options.first, self._limit
        if limit is None:
            start = first + pool * self.pool_runs * size
            runs = np.arange(self.pool_runs)
        else:
            start, n_runs = first, -(-(limit - first) // size)
            pools = -(-n_runs // self.pool_runs)
            epoch, inside = divmod(pool, pools)
            runs = np.array_split(self._runs_of(epoch, n_runs), pools)[inside]
        spans = [np.arange(start + r * size, start + (r + 1) * size) for r in runs]
        whole = np.concatenate(spans)
        whole = whole if limit is None else whole[whole < limit]
        return np.array_split(whole, min(len(whole), self.most_passes))

    def _read_pool(self, number: int) -> PoolText:
        passes = [self.read(contexts) for contexts in self.contexts(number)]
        n = sum(int(each.mask.sum()) for each in passes)
        return PoolText(passes, permutation(n, self._options.seed, number))

    def _epoch_runs(self, epoch: int, n_runs: int) -> Int[np.ndarray, " run"]:
        return permutation(n_runs, self._options.seed, epoch, RUN_CONTEXTS)

"""Activations of the running model, served like those of a store, but never written."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from saelab.activations.corpus import Corpus
from saelab.activations.forward import model_input, row_mask
from saelab.activations.order import POOL_ROWS, permutation
from saelab.activations.resume import check_same_order
from saelab.config import UsageError
from saelab.formats.json_file import canonical_digest
from saelab.lm.protocol import ActivationSource
from saelab.types import ActivationBatch

RUN_CONTEXTS = 8
"""Contexts read together: neighbours in the text, far from the pool's other contexts."""


@dataclass(frozen=True)
class LiveOptions:
    """Options of live activations.

    Attributes:
        first: index of the first context that is used, e.g. because a store has those before.
        forward_contexts: contexts per forward pass.
        pool_contexts: contexts whose rows are shuffled together; default: about 65,536 rows.
        max_norm: rows with a larger norm are not served; None: all are.
        first_position: rows at earlier positions of their contexts are not served.
    """

    first: int = 0
    forward_contexts: int = 32
    pool_contexts: int | None = None
    max_norm: float | None = None
    first_position: int = 0


class LiveBatches(Iterator[ActivationBatch]):
    """An endless iterator of float32 batches; forward passes run when they are needed.

    A pool is filled from runs of contexts all over the text (in order if the text is endless). Its
    rows are shuffled and served, then the next pool is filled. The order depends only on (seed,
    epoch). Memory: one pool of rows.

        batches = LiveBatches(lm, corpus, "blocks.1.hook_resid_post", 4096, seed=0)
        x = next(batches).x

    Raises:
        UsageError: the hook does not exist, or the corpus has no context from `options.first` on.
    """

    def __init__(
        self,
        lm: ActivationSource,
        corpus: Corpus,
        hook: str,
        batch_size: int,
        *,
        seed: int = 0,
        options: LiveOptions | None = None,
    ) -> None:
        self._options = options = options or LiveOptions()
        self._limit = None if corpus.endless else corpus.available(sys.maxsize)
        if self._limit is not None and self._limit <= options.first:
            raise UsageError(f"The text has {self._limit} contexts, none from {options.first} on.")
        lm.width(hook)
        self._lm, self._corpus, self._hook = lm, corpus, hook
        self.batch_size, self._seed = batch_size, seed
        given = options.pool_contexts or POOL_ROWS // corpus.context_length
        self._pool_runs = max(1, given // RUN_CONTEXTS)
        self._order = {
            "seed": seed,
            "pool_runs": self._pool_runs,
            "first": options.first,
            "text": canonical_digest([dict(corpus.facts), corpus.context_length, hook]),
        }
        if options.max_norm is not None:
            self._order["max_norm"] = repr(options.max_norm)
        if options.first_position:
            self._order["first_position"] = options.first_position
        self._runs_of = lru_cache(maxsize=1)(self._epoch_runs)
        self._pool, self._offset = 0, 0
        self._rows: Float[Tensor, "row d_in"] | None = None

    @override
    def __next__(self) -> ActivationBatch:
        pieces, missing = [], self.batch_size
        while missing:
            if self._rows is None:
                self._rows = self._fill(self._pool)
            piece = self._rows[self._offset : self._offset + missing]
            pieces.append(piece)
            missing -= len(piece)
            self._offset += len(piece)
            if self._offset == len(self._rows):
                self._pool, self._offset, self._rows = self._pool + 1, 0, None
        return ActivationBatch(torch.cat(pieces))

    def state_dict(self) -> dict[str, int | str]:
        """The position of the next batch; once loaded, the next batch is bit-equal."""
        return {"pool": self._pool, "offset": self._offset, **self._order}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Continue from a `state_dict`.

        Raises:
            UsageError: the state was taken from another text, hook, seed or pool size.
        """
        check_same_order(self._order, state)
        self._pool, self._offset = int(state["pool"]), int(state["offset"])
        self._rows = None

    def _fill(self, pool: int) -> Float[Tensor, "row d_in"]:
        """The rows of a pool in the order of serving."""
        rows = torch.cat([self._forward(contexts) for contexts in self._passes(pool)])
        order = torch.from_numpy(permutation(len(rows), self._seed, pool))
        return rows[order.to(rows.device)]

    def _passes(self, pool: int) -> list[Int[np.ndarray, " context"]]:
        """The contexts of a pool, grouped by forward pass."""
        size, first, limit = RUN_CONTEXTS, self._options.first, self._limit
        if limit is None:
            start = first + pool * self._pool_runs * size
            runs = np.arange(self._pool_runs)
        else:
            start, n_runs = first, -(-(limit - first) // size)
            pools = -(-n_runs // self._pool_runs)
            epoch, inside = divmod(pool, pools)
            runs = np.array_split(self._runs_of(epoch, n_runs), pools)[inside]
        spans = [np.arange(start + r * size, start + (r + 1) * size) for r in runs]
        whole = np.concatenate(spans)
        whole = whole if limit is None else whole[whole < limit]
        return np.array_split(whole, -(-len(whole) // self._options.forward_contexts))

    def _epoch_runs(self, epoch: int, n_runs: int) -> Int[np.ndarray, " run"]:
        return permutation(n_runs, self._seed, epoch, RUN_CONTEXTS)

    def _forward(self, contexts: Int[np.ndarray, " context"]) -> Float[Tensor, "row d_in"]:
        cuts = np.flatnonzero(np.diff(contexts) != 1) + 1
        parts = [self._corpus.read(int(s[0]), int(s[-1]) + 1) for s in np.split(contexts, cuts)]
        tokens = np.concatenate([part.tokens for part in parts])
        wanted = np.concatenate([row_mask(self._lm, part.tokens, part.columns) for part in parts])
        mask = torch.from_numpy(wanted).to(self._lm.device)
        mask[:, : self._options.first_position] = False
        rows = self._lm.capture(model_input(tokens), [self._hook])[self._hook][mask].float()
        limit = self._options.max_norm
        return rows if limit is None else rows[rows.norm(dim=1) <= limit]

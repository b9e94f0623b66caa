"""The contexts of a store: those of a corpus up to a number of rows, short ones packed."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Int, Integer, Shaped
from numpy import ndarray

from saelab.activations.annotate import ROW
from saelab.activations.corpus import Contexts, Corpus, TextCorpus
from saelab.activations.format import JsonObject
from saelab.activations.sequences import lay
from saelab.activations.windows import PADDING
from saelab.config import UsageError
from saelab.lm.protocol import ActivationSource

CHUNK = 2**12
"""Contexts of the corpus that are read and packed together."""
LISTED_FILES = 1000


@dataclass(frozen=True)
class StoredContexts:
    """Consecutive contexts of a store, with what is known of every position.

    Attributes:
        tokens: see `Sequences`.
        document: the document of each position.
    """

    tokens: Int[ndarray, "context pos"]
    document: Int[ndarray, "context pos"]
    labels: Bool[ndarray, "context pos label"] | None = None
    columns: Mapping[str, Shaped[ndarray, "context pos"]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Chunk:
    """A chunk of the corpus: its contexts, their places in the store, and their numbers of rows."""

    contexts: Contexts
    context: Int[ndarray, " sequence"]
    begin: Int[ndarray, " sequence"]
    rows: Int[ndarray, " sequence"]


class Packing:
    """The contexts that a harvest stores, counted as far as the corpus was read.

    Args:
        n_tokens: the last context is the one that reaches this number of rows.
        packed: whether short contexts of the corpus share a stored context.
        n_contexts: number of contexts, if known without counting rows.
    """

    def __init__(
        self,
        lm: ActivationSource,
        corpus: Corpus,
        n_tokens: int,
        *,
        packed: bool,
        n_contexts: int | None = None,
    ) -> None:
        self._limit = n_contexts
        self._skipped = np.asarray([PADDING, *lm.info.special_token_ids])
        self._corpus, self._n_tokens, self._packed = corpus, n_tokens, packed
        self._ends, self._rows, self._done = [0], 0, False
        self._files: Counter[str] = Counter()
        self._documents = np.zeros(2**10, dtype=bool)
        self._chunk = lru_cache(maxsize=2)(self._read_chunk)

    @property
    def n_contexts(self) -> int:
        """Number of contexts known so far."""
        return self._ends[-1]

    @property
    def n_rows(self) -> int:
        """Number of rows of these contexts."""
        return self._rows

    @property
    def rows_each(self) -> float:
        """Number of rows of each context of the corpus, so far."""
        return self._rows / (CHUNK * (len(self._ends) - 1))

    @property
    def complete(self) -> bool:
        """Whether all contexts are known: the rows or the corpus are counted to the end."""
        return self._done

    def count(self, rows: int | None = None) -> None:
        """Read on until this many rows are known; None reads to the end."""
        while not self._done and (rows is None or self._rows < rows):
            self._count_next()

    def available(self, n: int) -> int:
        """How many of the first `n` contexts exist; reads no further than needed."""
        while not self._done and self._ends[-1] < n:
            self._count_next()
        return min(n, self._ends[-1])

    def read(self, start: int, stop: int) -> StoredContexts:
        """Contexts `start` to `stop`, which must be available."""
        ends = np.asarray(self._ends)
        first, last = np.searchsorted(ends, (start, stop - 1), side="right") - 1
        parts = []
        for number in range(int(first), int(last) + 1):
            low = max(start, self._ends[number]) - self._ends[number]
            high = min(stop, self._ends[number + 1]) - self._ends[number]
            parts.append(self._laid(self._chunk(number), low, high))
        labels = [part.labels for part in parts if part.labels is not None]
        return StoredContexts(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.document for part in parts]),
            np.concatenate(labels) if labels else None,
            {n: np.concatenate([part.columns[n] for part in parts]) for n in parts[0].columns},
        )

    def text(self) -> JsonObject:
        """What was read: rows, documents, and rows by file (the thousand largest files)."""
        listed = self._files.most_common(LISTED_FILES)
        others = self._rows - sum(rows for _, rows in listed)
        files: JsonObject = dict(listed)
        if len(self._files) > LISTED_FILES:
            files[f"{len(self._files) - LISTED_FILES} others"] = others
        return {"tokens": self._rows, "documents": int(self._documents.sum()), "files": files}

    def _read_chunk(self, number: int) -> _Chunk:
        start = number * CHUNK
        contexts = self._corpus.read(start, self._corpus.available(start + CHUNK))
        tokens = contexts.tokens
        if self._packed:
            context, begin = lay((tokens != PADDING).sum(axis=1), tokens.shape[1])
        else:
            context, begin = np.arange(len(tokens)), np.zeros(len(tokens), dtype=np.int64)
        kept = ~np.isin(tokens, self._skipped)
        if ROW in contexts.columns:
            kept &= contexts.columns[ROW]
        rows = kept.sum(axis=1)
        return _Chunk(contexts, context, begin, rows)

    def _count_next(self) -> None:
        number = len(self._ends) - 1
        start = number * CHUNK
        if self._limit is not None:
            self._ends.append(min(start + CHUNK, self._limit))
            self._done = self._ends[-1] == self._limit
            return
        if self._corpus.available(start + 1) <= start:
            self._done = True
            return
        chunk = self._chunk(number)
        by_context = np.bincount(chunk.context, weights=chunk.rows).astype(np.int64)
        reached = self._rows + np.cumsum(by_context)
        n = len(reached)
        if reached[-1] >= self._n_tokens:
            n = int(np.searchsorted(reached, self._n_tokens)) + 1
            self._done = True
        elif len(chunk.rows) < CHUNK:
            self._done = True
        self._ends.append(self._ends[-1] + n)
        self._rows = int(reached[n - 1])
        used = chunk.context < n
        self._note(start, chunk.contexts.document[used], chunk.rows[used])

    def _note(self, start: int, document: Integer[ndarray, " n"], rows: Int[ndarray, " n"]) -> None:
        most = int(document.max()) + 1
        if most > len(self._documents):
            grown = np.zeros(max(most, 2 * len(self._documents)), dtype=bool)
            grown[: len(self._documents)] = self._documents
            self._documents = grown
        self._documents[document] = True
        if isinstance(self._corpus, TextCorpus):
            self._files.update(self._corpus.rows_by_file(start, rows))

    def _laid(self, chunk: _Chunk, low: int, high: int) -> StoredContexts:
        """Contexts `low` to `high` of a chunk."""
        here = (chunk.context >= low) & (chunk.context < high)
        tokens = chunk.contexts.tokens[here]
        real = tokens != PADDING
        sequence, position = np.nonzero(real)
        to = (chunk.context[here][sequence] - low, chunk.begin[here][sequence] + position)
        shape = high - low, tokens.shape[1]

        def laid(values: Shaped[ndarray, "n pos ..."], fill: int) -> Shaped[ndarray, "m pos ..."]:
            out = np.full((*shape, *values.shape[2:]), fill, dtype=values.dtype)
            out[to] = values[here][real]
            return out

        document = np.broadcast_to(chunk.contexts.document[:, None], chunk.contexts.tokens.shape)
        labels = chunk.contexts.labels
        return StoredContexts(
            laid(chunk.contexts.tokens, PADDING),
            laid(document, 0),
            None if labels is None else laid(labels, 0),
            {name: laid(values, 0) for name, values in chunk.contexts.columns.items()},
        )


def pays(corpus: Corpus) -> bool:
    """Whether to pack short contexts: when more than half would be padding."""
    if not isinstance(corpus, TextCorpus):
        return False
    return bool((corpus.read(0, corpus.available(CHUNK)).tokens == PADDING).mean() > 0.5)


def require(packing: Packing, n_tokens: int) -> None:
    """Refuse a text with fewer tokens than this.

    Raises:
        UsageError: gives the number that the text has.
    """
    if packing.complete and packing.n_rows < n_tokens:
        raise UsageError(
            f"The text has {packing.n_rows} tokens for training, {n_tokens} were asked for; lower "
            "--n-tokens or give more text."
        )

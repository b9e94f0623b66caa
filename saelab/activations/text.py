"""Text as contexts of token ids, tokenised only as far as it is read."""

import hashlib
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int, Integer, Shaped
from numpy import ndarray
from pydantic import JsonValue

from saelab.activations.annotate import LABELS, ROW, Annotator
from saelab.activations.format import JsonObject
from saelab.activations.shards import Shards
from saelab.activations.windows import PADDING, Shard
from saelab.formats.json_file import canonical_digest
from saelab.lm.protocol import ActivationSource
from saelab.ranks import Ranks

Split = Literal["train", "held-out", "all"]

HOLD_OUT_ONE_IN = 20
"""One context in twenty is held out: no SAE is ever trained on it."""

MANY = 8
"""From this number of documents on, a labelled text is halved by documents, otherwise by
contexts."""
STRETCH = 16
"""Number of contexts that belong together in a longer document."""


@dataclass(frozen=True)
class Contexts:
    """Consecutive contexts of a corpus.

    Attributes:
        tokens: token ids, `PADDING` after the end of a short context.
        document: the document that each context comes from.
        labels: ground-truth labels of every position, if the source has any.
        columns: further columns with an entry per position, by name (`Annotator.columns`).
        group: number of the group of each context. Contexts of a group belong together, since
            labels of a document hold in all its contexts. None: each context is a group.
    """

    tokens: Int[ndarray, "context pos"]
    document: Int[ndarray, " context"]
    labels: Bool[ndarray, "context pos label"] | None = None
    columns: Mapping[str, Shaped[ndarray, "context pos"]] = field(default_factory=dict)
    group: Int[ndarray, " context"] | None = None


@dataclass(frozen=True)
class TextReading:
    """How a text is read.

    Attributes:
        lm: the language model whose tokenizer is used.
        length: positions of a context.
        annotator: gives columns beside the token ids.
    """

    lm: ActivationSource
    length: int
    annotator: Annotator | None = None

    @property
    def bos(self) -> list[int]:
        """The tokens that each context begins with."""
        bos = self.lm.info.bos_token_id
        return [] if bos is None else [bos]

    @property
    def room(self) -> int:
        """Tokens of text in a context, special tokens not counted."""
        return self.length - len(self.bos)

    def key(self, facts: JsonObject) -> str:
        """A digest of everything that decides the tokens and how they are cut."""
        names: list[JsonValue] = [] if self.annotator is None else [*self.annotator.columns]
        digest = self.lm.info.tokenizer_digest
        return canonical_digest([facts, digest, self.bos, self.length, names])


class TextCorpus:
    """Tokenised documents cut into windows; each starts with BOS if the model has one.

    A document's last window is padded, so no context mixes documents. A shard is tokenised, in
    order, when one of its contexts is asked for.

    Args:
        reading: how it is read.
        make: tokenises a shard, each window without its BOS; None after the last shard.
        facts: the facts that identify the text, without the split. With `max_tokens`, the text ends
            with the shard that reaches this number of training tokens.
        kept: a directory with shards kept earlier.
    """

    def __init__(
        self,
        reading: TextReading,
        make: Callable[[int], Shard | None],
        facts: JsonObject,
        split: Split,
        *,
        kept: Path | None = None,
    ) -> None:
        self._special = np.asarray(reading.lm.info.special_token_ids, dtype=np.int32)
        self._reading, self._split, self._text_facts = reading, split, facts
        most = facts.get("max_tokens")
        self._max_tokens = most if isinstance(most, int) and facts.get("order") else None
        self._trained, self._share, self._ends = 0, 0.0, [0]
        self._shards = Shards(make, reading.key(facts), kept)

    @property
    def facts(self) -> JsonObject:
        """Source, digest, order and split."""
        return {**self._text_facts, "split": self._split}

    @property
    def label_names(self) -> tuple[str, ...]:
        """The annotator's names; empty without an annotator."""
        return () if self._reading.annotator is None else self._reading.annotator.label_names

    @property
    def label_descriptions(self) -> Mapping[str, str]:
        """The annotator's descriptions; empty without an annotator."""
        annotator = self._reading.annotator
        return {} if annotator is None else annotator.label_descriptions

    @property
    def label_hierarchies(self) -> Mapping[str, Sequence[str]]:
        """Empty: evaluations find the hierarchies that the labels show."""
        return {}

    @property
    def context_length(self) -> int:
        """Positions per context."""
        return self._reading.length

    @property
    def endless(self) -> bool:
        """False: a text ends, or is read up to a limit."""
        return False

    @property
    def n_contexts(self) -> int:
        """Number of contexts of this split. It tokenises the whole text: see `available`."""
        return self.available(sys.maxsize)

    @property
    def expected(self) -> float:
        """About how many contexts of this split exist, from what was read; inf if unknown."""
        return self._of_split(self._ends[-1]) / self._share if self._share else math.inf

    def available(self, n: int) -> int:
        """How many of the first `n` contexts of this split exist; reads no further than needed."""
        while self._share < 1 and self._of_split(self._ends[-1]) < n:
            self._open_next()
        return min(n, self._of_split(self._ends[-1]))

    def windows(self, n: int) -> int:
        """How many of the first `n` contexts of both splits exist."""
        while self._share < 1 and self._ends[-1] < n:
            self._open_next()
        return min(n, self._ends[-1])

    def digest(self) -> str:
        """sha256 of the tokens of all contexts of both splits as int32, padding included."""
        digest = hashlib.sha256()
        for number in range(len(self._ends) - 1 if self.n_contexts else 0):
            inside = np.arange(self._ends[number + 1] - self._ends[number])
            digest.update(self._windows(number, inside).tokens.astype("<i4").tobytes())
        return digest.hexdigest()

    def read(self, start: int, stop: int) -> Contexts:
        """Contexts `start` to `stop`."""
        number = self._numbers(np.arange(start, max(start, self.available(stop))))
        parts = [self._windows(shard, inside) for shard, inside in self._by_shard(number)]
        if not parts:
            return self._windows(0, number)
        labels = [part.labels for part in parts if part.labels is not None]
        groups = [part.group for part in parts if part.group is not None]
        return Contexts(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.document for part in parts]),
            np.concatenate(labels) if labels else None,
            {
                name: np.concatenate([part.columns[name] for part in parts])
                for name in parts[0].columns
            },
            np.concatenate(groups) if groups and self._many_documents else None,
        )

    @cached_property
    def _many_documents(self) -> bool:
        """Whether the text can be halved by documents, judged by its first shard."""
        return len(np.unique(self._shards[0].document)) >= MANY

    def rows_by_file(self, start: int, rows: Int[ndarray, " n"]) -> Counter[str]:
        """Sums of `rows` by file or stream; `rows` has an entry per context from `start` on."""
        found: Counter[str] = Counter()
        number = self._numbers(np.arange(start, start + len(rows)))
        for shard, inside in self._by_shard(number):
            each = self._shards[shard]
            part, rows = rows[: len(inside)], rows[len(inside) :]
            sums = np.bincount(each.file[inside], weights=part, minlength=len(each.files))
            found.update({n: int(s) for n, s in zip(each.files, sums, strict=True) if s})
        return found

    def ahead(self) -> AbstractContextManager[None]:
        """A context in which threads tokenise the text that comes next."""
        return self._shards.ahead()

    def keep_in(self, directory: Path, ranks: Ranks) -> None:
        """Keep the tokens in this directory; each process of `ranks` tokenises its part."""
        self._shards.keep_in(directory, ranks)

    def _open_next(self) -> None:
        first, shard = self._ends[-1], self._shards[len(self._ends) - 1]
        self._ends.append(first + len(shard))
        self._share = shard.share
        if self._max_tokens is not None:
            held_out = np.arange(first + 1, first + 1 + len(shard)) % HOLD_OUT_ONE_IN == 0
            counts = ~np.isin(shard.ids, self._special)
            counts &= shard.columns.get(ROW, True)
            self._trained += int(counts[~np.repeat(held_out, shard.length)].sum())
            if self._trained >= self._max_tokens and self._ends[-1] >= HOLD_OUT_ONE_IN:
                self._share = 1.0

    def _of_split(self, windows: int) -> int:
        if self._split == "all":
            return windows
        held_out = windows // HOLD_OUT_ONE_IN
        return held_out if self._split == "held-out" else windows - held_out

    def _numbers(self, of_split: Int[ndarray, " n"]) -> Int[ndarray, " n"]:
        """Indices of windows in the whole text."""
        if self._split == "all":
            return of_split
        if self._split == "held-out":
            return HOLD_OUT_ONE_IN * (of_split + 1) - 1
        return of_split + of_split // (HOLD_OUT_ONE_IN - 1)

    def _by_shard(self, number: Int[ndarray, " n"]) -> list[tuple[int, Int[ndarray, " m"]]]:
        """The shards of these windows, in order, and the windows' indices inside them."""
        ends = np.asarray(self._ends)
        shards = np.searchsorted(ends, number, side="right") - 1
        return [(int(s), number[shards == s] - ends[s]) for s in np.unique(shards)]

    def _windows(self, number: int, inside: Int[ndarray, " n"]) -> Contexts:
        shard, bos, room = self._shards[number], self._reading.bos, self._reading.room

        def behind_bos(name: str | None, fill: list[int]) -> Shaped[ndarray, "n pos ..."]:
            values = shard.padded(inside, room, name)
            front = np.empty((len(values), len(fill), *values.shape[2:]), values.dtype)
            front[:] = np.asarray(fill, dtype=values.dtype).reshape(1, -1, *[1] * (values.ndim - 2))
            return np.concatenate([front, values], axis=1)

        columns = {name: behind_bos(name, [0] * len(bos)) for name in shard.columns}
        labels = columns.pop(LABELS, None)
        group = None if labels is None else _groups(shard.document)[inside]
        return Contexts(behind_bos(None, bos), shard.document[inside], labels, columns, group)


def _groups(document: Integer[ndarray, " window"]) -> Int[ndarray, " window"]:
    """A number for each document, and for each stretch of documents longer than a stretch."""
    start = np.flatnonzero(np.diff(document, prepend=-1))
    size = np.diff(start, append=len(document))
    stretch = (np.arange(len(document)) - np.repeat(start, size)) // STRETCH
    long = np.repeat(size > STRETCH, size)
    return document.astype(np.int64) << 20 | np.where(long, stretch, 0)


__all__ = ["HOLD_OUT_ONE_IN", "PADDING", "Contexts", "Split", "TextCorpus"]

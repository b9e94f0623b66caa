"""The shipped grammar as a corpus: documents that are made as they are read."""

from collections.abc import Mapping

import numpy as np

from saelab.activations.format import JsonObject
from saelab.activations.text import Contexts, Split


class GrammarCorpus:
    """Documents of the shipped grammar, made as they are read, every token labelled."""

    def __init__(self, split: Split, seed: int, context_length: int) -> None:
        # The grammar's word lists are only needed by those who read it.
        from saelab.lm.tiny.grammar import LABELS

        self.split: Split = split
        self.seed = seed
        self._context_length = context_length
        self._labels = {label.name: label.description for label in LABELS}

    @property
    def facts(self) -> JsonObject:
        """Source, split and seed; they decide every document."""
        return {"source": "tiny", "split": self.split, "seed": self.seed}

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the grammar's features."""
        return tuple(self._labels)

    @property
    def label_descriptions(self) -> Mapping[str, str]:
        """What each of them means."""
        return self._labels

    @property
    def context_length(self) -> int:
        """Positions per context."""
        return self._context_length

    @property
    def endless(self) -> bool:
        """It is."""
        return True

    def available(self, n: int) -> int:
        """All of them."""
        return n

    def read(self, start: int, stop: int) -> Contexts:
        """Documents `start` to `stop`, one per context."""
        from saelab.lm.tiny.grammar import generate

        made = generate(self.seed, start, stop, split=self.split, n_ctx=self._context_length)
        return Contexts(made.tokens, np.arange(start, stop, dtype=np.int64), made.labels)

"""The tiny model's language as a corpus."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from saelab.activations.format import JsonObject
from saelab.activations.text import Contexts, Split
from saelab.config import UsageError
from saelab.lm.protocol import ModelInfo


class GrammarCorpus:
    """Documents of the shipped grammar, generated when they are read, with every token labelled."""

    def __init__(self, split: Literal["train", "held-out"], seed: int, context_length: int) -> None:
        # Imported here, since only this class needs the grammar's word lists.
        from saelab.lm.tiny.grammar import LABELS

        self.split: Literal["train", "held-out"] = split
        self.seed = seed
        self._context_length = context_length
        self._labels = {label.name: label.description for label in LABELS}

    @property
    def facts(self) -> JsonObject:
        """Source, split and seed, which decide every document."""
        return {"source": "tiny", "split": self.split, "seed": self.seed}

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the grammar's features."""
        return tuple(self._labels)

    @property
    def label_descriptions(self) -> Mapping[str, str]:
        """What each label means."""
        return self._labels

    @property
    def label_hierarchies(self) -> Mapping[str, Sequence[str]]:
        """The grammar's hierarchies of labels."""
        from saelab.lm.tiny.labels import HIERARCHIES

        return HIERARCHIES

    @property
    def context_length(self) -> int:
        """Positions per context."""
        return self._context_length

    @property
    def endless(self) -> bool:
        """Always true: the grammar generates any number of documents."""
        return True

    def available(self, n: int) -> int:
        """`n`: all of them exist."""
        return n

    def read(self, start: int, stop: int) -> Contexts:
        """Documents `start` to `stop`, one per context."""
        from saelab.lm.tiny.grammar import generate

        made = generate(self.seed, start, stop, split=self.split, n_ctx=self._context_length)
        return Contexts(made.tokens, np.arange(start, stop, dtype=np.int64), made.labels)


def grammar_corpus(info: ModelInfo, split: Split, seed: int, length: int) -> GrammarCorpus:
    """The grammar's documents; the split `all` is the one that no training reads.

    Raises:
        UsageError: the model is not the tiny model.
    """
    if info.name != "tiny":
        raise UsageError(
            f"The text 'tiny' is made of the tiny model's own tokens; for {info.name} give a file, "
            "a directory or hf:name."
        )
    return GrammarCorpus("train" if split == "train" else "held-out", seed, length)

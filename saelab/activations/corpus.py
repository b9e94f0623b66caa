"""Text as contexts of token ids: any source, random access, with a part held out for evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray
from pydantic import JsonValue

from saelab.activations.format import JsonObject
from saelab.activations.windows import PADDING, Windows, read_windows
from saelab.config import UsageError
from saelab.lm.protocol import ActivationSource, ModelInfo

__all__ = ["PADDING", "Contexts", "Corpus", "GrammarCorpus", "TextCorpus", "load_corpus"]

Split = Literal["train", "held-out"]

HOLD_OUT_ONE_IN = 20
"""Of a text's contexts, every twentieth is held out: no SAE is ever trained on it."""


@dataclass(frozen=True)
class Contexts:
    """Consecutive contexts of a corpus.

    Attributes:
        tokens: token ids, `PADDING` behind the end of a short context.
        document: which document each context comes from.
        labels: ground-truth labels of every position, where the source has any.
    """

    tokens: Int[ndarray, "context pos"]
    document: Int[ndarray, " context"]
    labels: Bool[ndarray, "context pos label"] | None = None


@runtime_checkable
class Corpus(Protocol):
    """Contexts by index. Reading the same range always gives the same contexts."""

    @property
    def facts(self) -> JsonObject:
        """What identifies the text: source, digest, split and the like."""
        ...

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the ground-truth labels; empty where nothing is known."""
        ...

    @property
    def label_descriptions(self) -> Mapping[str, str]:
        """What each label means, in plain words."""
        ...

    @property
    def label_hierarchies(self) -> Mapping[str, Sequence[str]]:
        """By name, general labels as unions of special ones, where the source knows them all."""
        ...

    @property
    def context_length(self) -> int:
        """Positions per context, special tokens included."""
        ...

    @property
    def n_contexts(self) -> int | None:
        """How many contexts there are; None: as many as one asks for."""
        ...

    def read(self, start: int, stop: int) -> Contexts:
        """Contexts `start` to `stop`; the range must lie within the corpus."""
        ...


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
    def label_hierarchies(self) -> Mapping[str, Sequence[str]]:
        """The grammar's."""
        from saelab.lm.tiny.labels import HIERARCHIES

        return HIERARCHIES

    @property
    def context_length(self) -> int:
        """Positions per context."""
        return self._context_length

    @property
    def n_contexts(self) -> None:
        """Unlimited."""
        return

    def read(self, start: int, stop: int) -> Contexts:
        """Documents `start` to `stop`, one per context."""
        from saelab.lm.tiny.grammar import generate

        made = generate(self.seed, start, stop, split=self.split, n_ctx=self._context_length)
        return Contexts(made.tokens, np.arange(start, stop, dtype=np.int64), made.labels)


class TextCorpus:
    """Tokenised documents cut into windows, each starting with BOS where the model has one.

    A document's last window is padded, so no context mixes documents.
    """

    def __init__(self, windows: Windows, facts: JsonObject, split: Split) -> None:
        self._windows = windows
        self._split: Split = split
        self._facts: JsonObject = {**facts, "split": split}

    @property
    def facts(self) -> JsonObject:
        """Source, digest of the tokens, split."""
        return self._facts

    @property
    def label_names(self) -> tuple[str, ...]:
        """None: what a text means is not known."""
        return ()

    @property
    def label_descriptions(self) -> Mapping[str, str]:
        """None, likewise."""
        return {}

    @property
    def label_hierarchies(self) -> Mapping[str, Sequence[str]]:
        """None, likewise."""
        return {}

    @property
    def context_length(self) -> int:
        """Positions per context."""
        return self._windows.length

    @property
    def n_contexts(self) -> int:
        """Contexts of this split."""
        held_out = len(self._windows) // HOLD_OUT_ONE_IN
        return held_out if self._split == "held-out" else len(self._windows) - held_out

    def read(self, start: int, stop: int) -> Contexts:
        """Contexts `start` to `stop`."""
        number = np.arange(start, min(stop, self.n_contexts))
        if self._split == "held-out":
            number = HOLD_OUT_ONE_IN * (number + 1) - 1
        else:
            number += number // (HOLD_OUT_ONE_IN - 1)
        return Contexts(*self._windows.read(number))


def load_corpus(
    source: str,
    lm: ActivationSource,
    *,
    split: Split = "train",
    context_length: int | None = None,
    seed: int = 0,
    max_tokens: int | None = None,
) -> Corpus:
    """The corpus that `source` names, tokenised for `lm`.

    Args:
        source: `tiny` (the shipped grammar), a text file, a JSONL file with a `text` field, a
            directory of such files, or `hf:name[:split]` (streamed with the datasets package).
        lm: whose tokenizer reads it.
        split: `train`, or `held-out` for contexts that no harvest uses.
        context_length: positions per context; default: 128, or the model's limit if lower.
        seed: decides the grammar's documents; a text is read in its own order.
        max_tokens: stop reading a text after this many; needed for endless streams.

    Raises:
        UsageError: the source is missing, empty, or does not fit the model.
    """
    length = min(128, lm.info.n_ctx) if context_length is None else context_length
    if not 2 <= length <= lm.info.n_ctx:
        raise UsageError(
            f"A context length of {length} does not fit {lm.info.name}, which reads 2 to "
            f"{lm.info.n_ctx} tokens."
        )
    if source == "tiny":
        return _grammar(lm.info, split, seed, length)
    # Of what is read, one context in twenty is held out.
    wanted = (
        None if max_tokens is None else -(-max_tokens * HOLD_OUT_ONE_IN // (HOLD_OUT_ONE_IN - 1))
    )
    windows = read_windows(source, lm, length, wanted)
    if not len(windows):
        raise UsageError(f"{source} holds no text.")
    facts: JsonObject = {
        "source": source,
        "tokens_sha256": windows.digest,
        "max_tokens": max_tokens,
    }
    if len(windows) < HOLD_OUT_ONE_IN:
        raise UsageError(
            f"{source} has {len(windows)} contexts of {length} tokens, too few to hold any "
            f"out; give at least {HOLD_OUT_ONE_IN}, or shorten --context-length."
        )
    return TextCorpus(windows, facts, split)


def recorded_corpus(
    facts: Mapping[str, JsonValue], lm: ActivationSource, split: Split, context_length: int
) -> Corpus:
    """The corpus whose `facts` a store or a run recorded.

    Raises:
        UsageError: the text is gone, or has changed since.
    """
    corpus = load_corpus(
        str(facts["source"]),
        lm,
        split=split,
        context_length=context_length,
        seed=_integer(facts.get("seed")) or 0,
        max_tokens=_integer(facts.get("max_tokens")),
    )
    if corpus.facts.get("tokens_sha256") != facts.get("tokens_sha256"):
        raise UsageError(
            f"{facts['source']} has changed since it was harvested; what was held out then is no "
            "longer known. Restore the text, or harvest and train again."
        )
    return corpus


def _integer(value: JsonValue) -> int | None:
    return value if isinstance(value, int) else None


def _grammar(info: ModelInfo, split: Split, seed: int, length: int) -> GrammarCorpus:
    if info.name != "tiny":
        raise UsageError(
            f"The text 'tiny' is made of the tiny model's own tokens; for {info.name} give a file, "
            "a directory or hf:name."
        )
    return GrammarCorpus(split, seed, length)

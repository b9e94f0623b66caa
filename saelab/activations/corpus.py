"""Text as contexts of token ids: any source, random access, with a part held out for evaluation."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray
from pydantic import JsonValue

from saelab.activations.documents import open_documents
from saelab.activations.format import JsonObject
from saelab.config import UsageError
from saelab.lm.protocol import ActivationSource, ModelInfo

Split = Literal["train", "held-out"]

PADDING = -1
"""Stands behind the end of a short context; never a token, never a row."""
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

    def __init__(self, windows: "Windows", facts: JsonObject, split: Split) -> None:
        held_out = np.arange(len(windows.tokens)) % HOLD_OUT_ONE_IN == HOLD_OUT_ONE_IN - 1
        keep = held_out if split == "held-out" else ~held_out
        self._tokens = windows.tokens[keep]
        self._document = windows.document[keep]
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
    def context_length(self) -> int:
        """Positions per context."""
        return self._tokens.shape[1]

    @property
    def n_contexts(self) -> int:
        """Contexts of this split."""
        return len(self._tokens)

    def read(self, start: int, stop: int) -> Contexts:
        """Contexts `start` to `stop`."""
        return Contexts(self._tokens[start:stop], self._document[start:stop])


@dataclass(frozen=True)
class Windows:
    """All windows of a text, both splits."""

    tokens: Int[ndarray, "context pos"]
    document: Int[ndarray, " context"]


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
    windows = _windows(source, lm, length, max_tokens)
    if not len(windows.tokens):
        raise UsageError(f"{source} holds no text.")
    digest = hashlib.sha256(np.ascontiguousarray(windows.tokens).tobytes()).hexdigest()
    facts: JsonObject = {"source": source, "tokens_sha256": digest, "max_tokens": max_tokens}
    if len(windows.tokens) < HOLD_OUT_ONE_IN:
        raise UsageError(
            f"{source} has {len(windows.tokens)} contexts of {length} tokens, too few to hold any "
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


def _windows(source: str, lm: ActivationSource, length: int, max_tokens: int | None) -> Windows:
    bos = lm.info.bos_token_id
    prefix = [] if bos is None else [bos]
    room = length - len(prefix)
    tokens: list[ndarray] = []
    document: list[int] = []
    seen = 0
    for number, text in enumerate(open_documents(source)):
        ids = lm.tokenizer.encode(text)
        for start in range(0, len(ids), room):
            window = np.full(length, PADDING, dtype=np.int32)
            piece = prefix + ids[start : start + room]
            window[: len(piece)] = piece
            tokens.append(window)
            document.append(number)
            seen += len(piece) - len(prefix)
        if max_tokens is not None and seen >= max_tokens * HOLD_OUT_ONE_IN / (HOLD_OUT_ONE_IN - 1):
            break
    empty = np.zeros((0, length), dtype=np.int32)
    return Windows(np.stack(tokens) if tokens else empty, np.asarray(document, dtype=np.int64))

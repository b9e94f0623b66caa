"""Text as contexts of token ids, from any source, with a part held out for evaluation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Protocol, runtime_checkable

from pydantic import JsonValue

from saelab.activations.annotate import Annotator
from saelab.activations.cutting import Cutter
from saelab.activations.documents import TEXT_FIELD, Document
from saelab.activations.format import UNTIL, JsonObject
from saelab.activations.grammar_corpus import GrammarCorpus, grammar_corpus
from saelab.activations.labelled import Labelled, annotator_for
from saelab.activations.open_text import OpenedText, open_text, text_now
from saelab.activations.sources import (
    BLOCK_BYTES,
    DocumentSource,
    StreamSource,
    hub_documents,
    ordered_documents,
)
from saelab.activations.text import HOLD_OUT_ONE_IN, Contexts, Split, TextCorpus, TextReading
from saelab.activations.windows import KEPT, PADDING, Shard, tokenise
from saelab.config import UsageError
from saelab.lm.protocol import ActivationSource, ModelInfo

__all__ = [
    "PADDING",
    "Contexts",
    "Corpus",
    "GrammarCorpus",
    "Split",
    "TextCorpus",
    "load_corpus",
    "recorded_corpus",
    "tokens_within",
]

BLOCK_CONTEXTS = 128
"""Bytes per block and per position of a context: a block has about 30 contexts, one of them
short."""


@runtime_checkable
class Corpus(Protocol):
    """Contexts by index. The same range always gives the same contexts."""

    @property
    def facts(self) -> JsonObject:
        """What identifies the text: source, digest, split and the like."""
        ...

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the ground-truth labels; empty if there are none."""
        ...

    @property
    def label_descriptions(self) -> Mapping[str, str]:
        """What each label means, in plain words."""
        ...

    @property
    def label_hierarchies(self) -> Mapping[str, Sequence[str]]:
        """General labels as unions of special ones, by name, if the source knows them."""
        ...

    @property
    def context_length(self) -> int:
        """Positions per context, special tokens included."""
        ...

    @property
    def endless(self) -> bool:
        """Whether there are arbitrarily many contexts."""
        ...

    def available(self, n: int) -> int:
        """How many of the first `n` contexts exist; reads no further than needed."""
        ...

    def read(self, start: int, stop: int) -> Contexts:
        """Contexts `start` to `stop`; the range must lie within the corpus."""
        ...


def tokens_within(corpus: Corpus, n_tokens: int) -> int:
    """The number of tokens, at most `n_tokens`, that a corpus has; reads no further than needed."""
    length = corpus.context_length
    return min(n_tokens, corpus.available(-(-n_tokens // length)) * length)


def load_corpus(  # noqa: PLR0913 - each is an option of the command line
    source: str,
    lm: ActivationSource,
    *,
    split: Split = "train",
    context_length: int | None = None,
    seed: int = 0,
    max_tokens: int | None = None,
    text_field: str = TEXT_FIELD,
    labels: Sequence[str] = (),
    roles: Sequence[str] = (),
    annotator: Annotator | None = None,
) -> Corpus:
    """The corpus that `source` names, tokenised for `lm` while it is read.

    Args:
        source: `tiny` (the shipped grammar), a text file, a file of JSON objects (one a line), a
            directory of such files, `hf:name[:split]` or `hf:name:config:split` (streamed with the
            datasets package).
        lm: the language model whose tokenizer is used.
        split: `train`, `held-out` (contexts that no harvest uses), or `all`.
        context_length: positions per context; default: 128, or the model's limit if lower.
        seed: decides the grammar's documents, and the order in which files are read.
        max_tokens: end the text after this many tokens of the `train` split.
        text_field: the field of a JSON object, or the column of a dataset, that holds the text.
        labels: fields of rows that are labels, a JSONL file of labels, or `none`; default: the
            rows' own `labels` and `spans` (see activations_cache/README.md).
        roles: roles of conversations whose tokens get rows; default: all.
        annotator: makes the text of documents, and columns for their tokens; default: one that
            reads labels and messages, if there are any.

    Raises:
        UsageError: the source is missing, empty, not text, or does not fit the model.
    """
    length = _length(lm.info, context_length)
    if source == "tiny":
        return grammar_corpus(lm.info, split, seed, length)
    facts: JsonObject = {"source": source}
    if text_field != TEXT_FIELD:
        facts["text_field"] = text_field
    opened, cutter = open_text(source, seed, _block(length)), Cutter(lm.tokenizer)
    facts |= opened.facts
    if opened.endless:
        facts["max_tokens"] = max_tokens
    if annotator is None:
        annotator = annotator_for(
            opened.documents,
            lm.tokenizer,
            labels=labels,
            roles=roles,
            text_field=text_field,
            stream=opened.endless,
        )
    if annotator is not None:
        facts["annotator"] = annotator.facts
    shards, reading = (
        opened.shards(text_field, cutter, annotator),
        TextReading(lm, length, annotator),
    )
    make = partial(_shard, lambda: shards, reading, cutter)
    return _checked(TextCorpus(reading, make, facts, split), source)


def recorded_corpus(
    facts: Mapping[str, JsonValue],
    lm: ActivationSource,
    split: Split,
    context_length: int,
    *,
    kept: Path | None = None,
    near: Sequence[Path] = (),
) -> Corpus:
    """The corpus with these recorded `facts`, from a store or a run.

    `kept` is the store's directory. Tokens kept there are not read from the text again; the text is
    opened only for contexts beyond them. A text that was moved is looked for near `near` too, see
    `saelab.moved`.

    Raises:
        UsageError: the text is missing or has changed.
    """
    source = str(facts["source"])
    length = _length(lm.info, context_length)
    if source == "tiny":
        return grammar_corpus(lm.info, split, _integer(facts.get("seed")) or 0, length)
    if "order" not in facts:
        return _in_order(facts, lm, split, length, near)
    known = {name: value for name, value in facts.items() if name not in ("split", UNTIL)}
    field, cutter = str(facts.get("text_field", TEXT_FIELD)), Cutter(lm.tokenizer)
    lock = Lock()

    @cache
    def opened() -> OpenedText:
        found = open_text(text_now(source, near), _integer(facts.get("seed")) or 0, _block(length))
        if found.facts.get("text_xxh3") != facts.get("text_xxh3"):
            raise UsageError(_changed(source))
        return found

    def documents() -> Iterator[Document]:
        with lock:
            return opened().documents()

    told, changed = facts.get("annotator"), _changed(source)
    annotator = Labelled.recorded(told, documents, lm.tokenizer, field, changed=changed)

    @cache
    def shards_once() -> DocumentSource:
        return opened().shards(field, cutter, annotator)

    def shards() -> DocumentSource:
        with lock:
            return shards_once()

    reading = TextReading(lm, length, annotator)
    make = partial(_shard, shards, reading, cutter)
    place = None if kept is None else kept / KEPT
    return _checked(TextCorpus(reading, make, known, split, kept=place), source)


def _length(info: ModelInfo, asked: int | None) -> int:
    length = min(128, info.n_ctx) if asked is None else asked
    if not 2 <= length <= info.n_ctx:
        raise UsageError(
            f"A context length of {length} does not fit {info.name}, which reads 2 to "
            f"{info.n_ctx} tokens."
        )
    return length


def _block(length: int) -> int:
    return max(BLOCK_BYTES, BLOCK_CONTEXTS * length)


def _shard(
    source: Callable[[], DocumentSource], reading: TextReading, cutter: Cutter, number: int
) -> Shard | None:
    """A shard of the source as windows; `room` does not count BOS."""
    found = source().shard(number)
    if found is None:
        return None
    lm, annotator = reading.lm, reading.annotator
    shard = tokenise(found.documents, lm.tokenizer, reading.room, cutter, annotator)
    return replace(shard, share=found.share)


def _in_order(
    facts: Mapping[str, JsonValue],
    lm: ActivationSource,
    split: Split,
    length: int,
    near: Sequence[Path],
) -> Corpus:
    """A text read in the order of file names and lines, identified by its tokens' digest."""
    source, most = str(facts["source"]), _integer(facts.get("max_tokens"))
    documents = (
        partial(hub_documents, source, TEXT_FIELD, as_they_are=True)
        if source.startswith("hf:")
        else partial(ordered_documents, text_now(source, near))
    )
    opened, reading, cutter = StreamSource(documents), TextReading(lm, length), Cutter(lm.tokenizer)
    # The last document is the one that reached this number, counted over both splits.
    left = None if most is None else -(-most * HOLD_OUT_ONE_IN // (HOLD_OUT_ONE_IN - 1))

    def make(number: int) -> Shard | None:
        nonlocal left
        shard = _shard(lambda: opened, reading, cutter, number)
        if shard is not None and left is not None:
            shard = shard.up_to_document(left)
            left -= len(shard.ids)
        return shard

    corpus = TextCorpus(reading, make, {**facts}, split)
    if corpus.digest() != facts.get("tokens_sha256"):
        raise UsageError(_changed(source))
    return corpus


def _checked(corpus: TextCorpus, source: str) -> TextCorpus:
    """Refuse a text that is too short to hold anything out."""
    windows = corpus.windows(HOLD_OUT_ONE_IN)
    if not windows:
        raise UsageError(f"{source} holds no text.")
    if windows < HOLD_OUT_ONE_IN and corpus.facts["split"] != "all":
        raise UsageError(
            f"{source} has {windows} contexts of {corpus.context_length} tokens, too few to hold "
            f"any out; give at least {HOLD_OUT_ONE_IN}, or shorten --context-length."
        )
    return corpus


def _changed(source: str) -> str:
    return (
        f"{source} has changed since it was harvested; what was held out then is no longer known. "
        "Restore the text, or harvest and train again."
    )


def _integer(value: JsonValue) -> int | None:
    return value if isinstance(value, int) else None

"""Labels in a row of JSON: of the whole text, and of stretches of its characters.

    {"text": "Alice ran.", "labels": {"mood": "calm", "true": false, "tags": ["a", "b"]},
     "spans": [{"start": 0, "end": 5, "label": "person"}]}
    {"tokens": ["Alice", "ran", "."], "labels": {"pos": ["PROPN", "VERB", "PUNCT"]}}

`activations_cache/README.md` has the rules.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from saelab.activations.documents import Origin
from saelab.config import UsageError

LABELS, SPANS, TOKENS, DESCRIPTIONS = "labels", "spans", "tokens", "descriptions"


@dataclass(frozen=True)
class Value:
    """One label of a document: a field, and its value unless the value is true or false.

    `holds` is False for a field that is false: its column exists, but no token has it.
    """

    field: str
    value: str | None = None
    holds: bool = True

    @property
    def column(self) -> str:
        """The name of its column."""
        return self.field if self.value is None else f"{self.field}={self.value}"


@dataclass(frozen=True)
class Mark:
    """A label of characters `start` to `stop` of the text; of the whole text if they are None."""

    value: Value
    start: int | None = None
    stop: int | None = None


def words_of(row: Mapping[str, object], origin: Origin) -> list[str]:
    """The row's `tokens`.

    Raises:
        UsageError: they are not a list of non-empty texts.
    """
    words = row[TOKENS]
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise UsageError(
            f"{origin}: the field {TOKENS!r} holds {shown(words)}, not a list of texts of at "
            "least one character."
        )
    return words


def marks_of(
    row: Mapping[str, object], names: Sequence[str], text: str, origin: Origin
) -> list[Mark]:
    """The labels of `text` in the row: its `spans`, its `labels`, and the fields in `names`.

    Raises:
        UsageError: a label is invalid; the sentence gives origin, value and remedy.
    """
    where = list(_places(row, text, origin)) if TOKENS in row else None
    given = row.get(LABELS)
    if given is not None and not isinstance(given, Mapping):
        raise UsageError(
            f"{origin}: the field {LABELS!r} holds {shown(given)}, not an object such as "
            '{"mood": "calm"}; name the fields that are labels with --labels FIELD, or leave it '
            "out with --labels none."
        )
    fields = dict(given or {}) | {name: row[name] for name in names if name in row}
    marks = [mark for name, value in fields.items() for mark in _marks(name, value, where, origin)]
    return marks + list(_spans(row.get(SPANS), len(text), origin))


def _marks(
    name: str, value: object, where: list[tuple[int, int]] | None, origin: Origin
) -> Iterator[Mark]:
    if not isinstance(value, list):
        yield from (Mark(one) for one in _values(name, value, origin))
    elif where is None:
        # Several values at once, e.g. tags.
        yield from (Mark(one) for each in value for one in _values(name, each, origin))
    elif len(value) != len(where):
        raise UsageError(
            f"{origin}: the label {name!r} has {len(value)} values for {len(where)} tokens; give "
            "one for each."
        )
    else:
        for each, (start, stop) in zip(value, where, strict=True):
            yield from (Mark(one, start, stop) for one in _values(name, each, origin))


def _values(name: str, value: object, origin: Origin) -> Iterator[Value]:
    if value is None:
        return
    if isinstance(value, bool):
        yield Value(name, holds=value)
    elif isinstance(value, str | int):
        yield Value(name, str(value))
    else:
        raise UsageError(
            f"{origin}: the label {name!r} holds {shown(value)}; a label is true, false, a text, a "
            "whole number or a list of these: give the range in which a measured number lies."
        )


def _spans(spans: object, length: int, origin: Origin) -> Iterator[Mark]:
    if spans is None:
        return
    if not isinstance(spans, list):
        raise UsageError(f"{origin}: the field {SPANS!r} holds {shown(spans)}, not a list.")
    for span in spans:
        start, stop, label = (
            span.get(key) if isinstance(span, dict) else None for key in ("start", "end", "label")
        )
        if not _is_place(start) or not _is_place(stop) or not isinstance(label, str):
            raise UsageError(
                f"{origin}: the span {shown(span)} is not of the form "
                '{"start": 3, "end": 9, "label": "person"}.'
            )
        if not 0 <= start < stop <= length:
            raise UsageError(
                f"{origin}: the span {shown(span)} does not lie in the text, which has {length} "
                "characters; start counts from 0, and end is the first character behind it."
            )
        yield Mark(Value(label), start, stop)


def _is_place(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _places(row: Mapping[str, object], text: str, origin: Origin) -> Iterator[tuple[int, int]]:
    """The position of each of the row's tokens in the text."""
    stop = 0
    for word in words_of(row, origin):
        start = text.find(word, stop)
        if start < 0:
            raise UsageError(
                f"{origin}: the token {shown(word)} does not occur in the text behind character "
                f"{stop}; tokens are pieces of the text in their order."
            )
        stop = start + len(word)
        yield start, stop


def covered(offsets: Int[ndarray, "token 2"], text: str, start: int, stop: int) -> tuple[int, int]:
    """The first token that overlaps this stretch, and the first token after the overlap.

    White space at the stretch's ends does not count, unless there is nothing else: tokenizers
    attach a space to the following word, people to the preceding one.
    """
    part = text[start:stop]
    if part.strip():
        start, stop = stop - len(part.lstrip()), start + len(part.rstrip())
    ends = np.maximum.accumulate(np.maximum(offsets[:, 1], offsets[:, 0] + 1))
    first = int(np.searchsorted(ends, start, side="right"))
    return first, max(first, int(np.searchsorted(offsets[:, 0], stop, side="left")))


def token_table(
    marks: Sequence[Mark],
    columns: Mapping[str, int],
    text: str,
    offsets: Int[ndarray, "token 2"],
) -> Bool[ndarray, "token label"]:
    """The columns of every token: labels of the whole text, and of stretches with that token."""
    table = np.zeros((len(offsets), len(columns)), dtype=bool)
    for mark in marks:
        if not mark.value.holds:
            continue
        first, stop = 0, len(offsets)
        if mark.start is not None and mark.stop is not None:
            first, stop = covered(offsets, text, mark.start, mark.stop)
        table[first:stop, columns[mark.value.column]] = True
    return table


def descriptions_of(given: object, origin: Origin) -> dict[str, str]:
    """The meaning of labels, from `descriptions`.

    Raises:
        UsageError: it is not an object of texts.
    """
    if not isinstance(given, Mapping) or not all(
        isinstance(text, str) for pair in given.items() for text in pair
    ):
        raise UsageError(
            f"{origin}: the field {DESCRIPTIONS!r} holds {shown(given)}, not an object such as "
            '{"spam": "An advert."}.'
        )
    return dict(given)


def shown(value: object) -> str:
    """A value as an error message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

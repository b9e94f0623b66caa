"""Documents from rows, files and streams: their origin, text, and other fields.

Every reader treats text alike. Bytes are UTF-8, or UTF-16 after a byte order mark; anything else is
refused with file and line. Line ends of every system become a newline. A row whose text is null or
empty is not a document. Half of a surrogate pair, which JSON can spell but text cannot hold,
becomes U+FFFD.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import override

from saelab.config import UsageError

PLAIN = (".txt", ".md")
ROWS = (".jsonl", ".ndjson", ".json-lines", ".jsonlines", ".jl")
SUFFIXES = (*PLAIN, *ROWS)
"""Suffixes of text files, also with `.gz` appended."""
TEXT_FIELD = "text"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Origin:
    """The origin of a document, for messages and for counts by file.

    Attributes:
        source: a file's path, or the name of a stream.
        line: line in a file of rows, or row of a stream, counted from 1; None for a whole file.
    """

    source: str
    line: int | None = None

    @override
    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}, line {self.line}"


@dataclass(frozen=True)
class Document:
    """A text and what belongs to it.

    Attributes:
        text: the text to tokenise; never blank, unless no field was asked for.
        origin: where the document is from.
        fields: the other fields of its JSON object, or columns of its row.
    """

    text: str
    origin: Origin
    fields: Mapping[str, object] = field(default_factory=dict)


def row_document(
    row: Mapping[str, object], origin: Origin, text_field: str | None
) -> Document | None:
    """The document of a row; None if its text is null or blank.

    Without a `text_field` the text is empty: the caller makes it from the other fields.

    Raises:
        UsageError: the row has no such field, or it is neither text nor null.
    """
    if text_field is None:
        return Document("", origin, row)
    if text_field not in row:
        names = ", ".join(map(repr, list(row)[:8])) or "none"
        raise UsageError(
            f"{origin}: the row has no field {text_field!r}, only {names}; name the one that holds "
            "the text with --text-field."
        )
    text = row[text_field]
    if text is None:
        return None
    if not isinstance(text, str):
        raise UsageError(
            f"{origin}: the field {text_field!r} holds {_kind(text)}, not text; name another with "
            "--text-field."
        )
    if not text.strip():
        return None
    others = {name: value for name, value in row.items() if name != text_field}
    return Document(clean(text), origin, others)


def json_rows(lines: Iterable[tuple[int, str]], source: str) -> Iterator[tuple[Origin, Any]]:
    """The JSON object of each non-blank line, with its line number.

    Raises:
        UsageError: a line is not a JSON object.
    """
    for number, line in lines:
        if not line.strip():
            continue
        origin = Origin(source, number)
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply")
            raise UsageError(f"{origin}: the line is not JSON ({reason}).") from None
        if row is None:
            continue
        if not isinstance(row, dict):
            raise UsageError(f"{origin}: the line is no JSON object, but {_kind(row)}.")
        yield origin, row


def clean(text: str) -> str:
    """The text with newlines as line ends and without characters that no tokenizer can read."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)


def _kind(value: object) -> str:
    names: dict[type, str] = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
    }
    return names.get(type(value), "text" if isinstance(value, str) else "an object")

"""A second file of labels: one row per document, found by id or by line."""

from collections.abc import Mapping
from pathlib import Path

from saelab.activations.documents import Document, Origin, json_rows
from saelab.activations.marks import (
    DESCRIPTIONS,
    LABELS,
    SPANS,
    TOKENS,
    descriptions_of,
    shown,
)
from saelab.config import UsageError
from saelab.formats.regular import utf8

ID = "id"
KNOWN = (ID, LABELS, SPANS, TOKENS, DESCRIPTIONS)


class LabelFile:
    """The rows of a JSONL file of labels, in memory.

    A row with an `id` belongs to the document with that `id`, or to the text file of that name.
    Rows without an `id` belong to the documents on the same lines; the text must then be a single
    file of rows.

    Attributes:
        descriptions: the meaning of labels, from the rows' `descriptions`.

    Raises:
        UsageError: the file is missing, or a row is invalid; the message gives its line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptions: dict[str, str] = {}
        self._rows: dict[str | int, tuple[Mapping[str, object], Origin]] = {}
        self._used: set[str | int] = set()
        self._source: str | None = None
        for origin, row in json_rows(_lines(path), str(path)):
            self._add(row, origin)
        if not self._rows:
            raise UsageError(f"{path} holds no labels.")
        self.by_id = isinstance(next(iter(self._rows)), str)

    def _add(self, row: Mapping[str, object], origin: Origin) -> None:
        if unknown := [name for name in row if name not in KNOWN]:
            raise UsageError(
                f"{origin}: the field {unknown[0]!r} is none of {', '.join(KNOWN)}; put labels of "
                f"the document into {LABELS!r}."
            )
        if row.get(DESCRIPTIONS) is not None:
            self.descriptions |= descriptions_of(row[DESCRIPTIONS], origin)
        key = origin.line
        if ID in row:
            if not isinstance(row[ID], str | int) or isinstance(row[ID], bool):
                raise UsageError(f"{origin}: the id {shown(row[ID])} is neither text nor a number.")
            key = str(row[ID])
        assert key is not None
        other = next(iter(self._rows), key)
        if isinstance(other, str) != isinstance(key, str):
            raise UsageError(f"{origin}: either every row has an {ID!r} or none has; this differs.")
        if key in self._rows:
            raise UsageError(
                f"{origin}: the id {shown(key)} is that of {self._rows[key][1]} already; join the "
                "two rows."
            )
        self._rows[key] = row, origin

    def row_of(self, document: Document) -> tuple[Mapping[str, object], Origin]:
        """The labels' row of a document.

        Raises:
            UsageError: the document has no row, or more than one may be its row.
        """
        origin = document.origin
        key = self._id(document) if self.by_id else self._line(origin)
        if key not in self._rows:
            named = f"the id {shown(key)}" if self.by_id else "its line"
            raise UsageError(
                f"{origin}: {self.path} has no row for {named}; give it one, with empty "
                f"{LABELS!r} if nothing holds."
            )
        self._used.add(key)
        return self._rows[key]

    def skip(self, document: Document) -> None:
        """Note a document without text, which needs no row."""
        self._used.add(self._id(document) if self.by_id else self._line(document.origin))

    def _id(self, document: Document) -> str:
        given = document.fields.get(ID)
        if given is None and document.origin.line is None:
            return Path(document.origin.source).name
        if not isinstance(given, str | int) or isinstance(given, bool):
            raise UsageError(
                f"{document.origin}: the row has the id {shown(given)}; {self.path} goes by ids, "
                "so each row of the text needs one that is text or a whole number."
            )
        return str(given)

    def _line(self, origin: Origin) -> int:
        self._source = self._source or origin.source
        if origin.line is None or origin.source != self._source:
            raise UsageError(
                f"{origin}: only of one file with a document a line can {self.path} go by lines; "
                f"give its rows an {ID!r}: the documents' own, or the names of the text files."
            )
        return origin.line

    def check_used(self) -> None:
        """Refuse rows that belong to no document.

        Raises:
            UsageError: there is such a row.
        """
        for key, (_, origin) in self._rows.items():
            if key not in self._used:
                named = f"the id {shown(key)}" if self.by_id else "that line"
                raise UsageError(f"{origin}: the text has no document with {named}.")


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = utf8(path.read_bytes(), path)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; check --labels.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}.") from None
    # Not splitlines, which also splits at characters that JSON strings may contain.
    return list(enumerate(text.split("\n"), start=1))

"""CSV that spreadsheets show as it is: no text of ours is a formula there."""

import csv
import io
from collections.abc import Iterable, Sequence

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet computes a cell that begins with one of these."""
MARK = "'"
"""Put before such a text; spreadsheets take what follows as text."""


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """The rows as CSV. Texts that would be formulas are marked; numbers stay."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_marked(cell) for cell in row] for row in rows)
    return text.getvalue()


def unmarked(cell: str) -> str:
    """The text that `csv_text` was given."""
    return cell[1:] if cell.startswith(tuple(MARK + first for first in (*FORMULA, MARK))) else cell


def _marked(cell: object) -> object:
    # A text that begins like a marked one is marked too, so that reading it gives it back.
    begins = isinstance(cell, str) and (cell.startswith(FORMULA) or unmarked(cell) != cell)
    return f"{MARK}{cell}" if begins else cell

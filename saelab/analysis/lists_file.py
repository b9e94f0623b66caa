"""Lists of latents as JSON lines, for other runs' readers and for programs.

A line is an entry, {"list": NAME, "latent": NUMBER, "comment": TEXT}; the order of the lines is the
list's. `comment` may be missing.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saelab.analysis.lists import (
    LONGEST_COMMENT,
    LONGEST_NAME,
    STAY,
    Entry,
    EntryText,
    check_one_line,
)
from saelab.analysis.notes import Notes
from saelab.config import UsageError
from saelab.formats.json_file import parse_json
from saelab.formats.regular import read_regular

MAX_BYTES = 2**26
MAX_LINE_VALUES = 10
FIELDS = ("list", "latent", "comment")
Lists = Mapping[str, Sequence[Entry]]
Values = Mapping[tuple[str, int], str]
"""The values of edits by list and latent."""


def list_of(run: Path, name: str) -> Sequence[Entry]:
    """The entries of a run's list, in its order.

    Raises:
        UsageError: there is no such list; the sentence names those that there are.
    """
    lists = Notes(run).lists()
    if name not in lists:
        there = f"it has {', '.join(lists)}" if lists else "it has none"
        raise UsageError(f"{run} has no list {name!r}; {there}.")
    return lists[name]


def written_lists(lists: Lists) -> bytes:
    """The file of these lists."""
    rows = (
        {"list": name, "latent": one.latent, "comment": one.comment}
        for name, entries in lists.items()
        for one in entries
    )
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()


def read_lists(path: Path) -> Lists:
    """The lists of a file; raises as `parsed_lists`."""
    return parsed_lists(read_regular(path, most=MAX_BYTES), str(path))


def parsed_lists(raw: bytes, name: str) -> Lists:
    """The checked lists of a file's content, each latent once on a list.

    Raises:
        UsageError: a line is no entry; the message says which, and why.
    """
    found: dict[str, dict[int, Entry]] = {}
    for where, row in _rows(raw, name):
        latent, title, comment = row.get("latent"), row.get("list"), row.get("comment") or ""
        if type(latent) is not int or not 0 <= latent < 2**31:
            raise UsageError(f"{where} names no latent: {str(latent)[:40]!r}; give its number.")
        text = _entry(title, comment)
        if text is None:
            raise UsageError(
                f"{where} has no `list` of 1 to {LONGEST_NAME} characters in one line with a "
                f"comment of at most {LONGEST_COMMENT}."
            )
        check_one_line(comment, f"{where}: the comment")
        entries = found.setdefault(text.name, {})
        entries[latent] = Entry(latent, float(len(entries)), text.comment)
    if not found:
        raise UsageError(f"{name} holds no lists.")
    return {title: tuple(entries.values()) for title, entries in found.items()}


def _rows(raw: bytes, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(raw.split(b"\n"), 1):
        where = f"Line {number} of {name}"
        if line.strip():
            row = parse_json(line, where, max_values=MAX_LINE_VALUES)
            unknown = [n for n in row if n not in FIELDS] if isinstance(row, dict) else [row]
            if unknown:
                raise UsageError(
                    f"{where} has {str(unknown[0])[:40]!r}; an entry has {', '.join(FIELDS)}."
                )
            yield where, row


def _entry(title: object, comment: object) -> EntryText | None:
    if not (isinstance(title, str) and isinstance(comment, str)) or "\n" in title.strip():
        return None
    return EntryText.of(f"{title.strip()}\n0\n{comment}")


def import_lists(run: Path, d_sae: int, lists: Lists) -> int:
    """Put the latents on the run's lists, behind those that are there; returns how many entries.

    Raises:
        UsageError: the SAE has no such latent; then nothing is entered.
    """
    for entries in lists.values():
        for one in entries:
            if one.latent >= d_sae:
                raise UsageError(f"There is no latent {one.latent}; the SAE has 0 to {d_sae - 1}.")
    edits = [
        (one.latent, "list", EntryText(name, STAY, one.comment).value)
        for name, entries in lists.items()
        for one in entries
    ]
    Notes(run).write_all(edits)
    return len(edits)


def values_of(run: Path, lists: Lists) -> Values:
    """What the run has of the entries of `lists`: values that write them again as they are now."""
    there = Notes(run).lists()
    now = {(name, one.latent): one for name, entries in there.items() for one in entries}
    asked = [(name, one.latent) for name, entries in lists.items() for one in entries]
    return {key: _value(key[0], now.get(key)) for key in asked}


def _value(name: str, entry: Entry | None) -> str:
    text = EntryText(name, f"{entry.place:.17g}", entry.comment) if entry else EntryText(name)
    return text.value


def take_back(run: Path, before: Values, after: Values) -> int:
    """Make entries what they were `before`, where they still are what they were `after`.

    Returns:
        How many were changed since, and stay.

    Raises:
        UsageError: the notes cannot be written; then nothing is.
    """
    lists: dict[str, list[Entry]] = {}
    for name, latent in after:
        lists.setdefault(name, []).append(Entry(latent, 0.0))
    now = values_of(run, lists)
    same = [key for key in after if now[key] == after[key]]
    Notes(run).write_all([(key[1], "list", before[key]) for key in same])
    return len(after) - len(same)

"""What readers say of a run's latents: labels, notes, bookmarks, lists, in RUN/notes.sqlite.

The file is a log: every edit inserts one row, and a latent's label is its latest edit. So two
processes that write at once lose nothing, even in the same field, and earlier labels stay readable.
The file is separate from features.h5, which may be rebuilt.
"""

import hashlib
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from saelab.analysis.lists import (
    LONGEST_COMMENT,
    LONGEST_ENTRY,
    LONGEST_NAME,
    Entry,
    EntryText,
    check_one_line,
    comment_of,
    lines_of,
    lists_of,
    settled,
)
from saelab.analysis.notes_file import connect, has_begun
from saelab.config import UsageError

LONGEST = {"label": 200, "note": 10_000, "bookmark": 1, "verdict": 13, "list": LONGEST_ENTRY}
Field = Literal["label", "note", "bookmark", "verdict", "list"]
_VERDICT = re.compile("[+0-][0-9a-f]{12}")

_LAST = """
select latent, field, value from edit where id in (
    select max(id) from edit where field != 'list'
    group by latent, field, case when field = 'verdict' then substr(value, 2) else '' end
)
"""
_LISTED = """
select latent, value from edit where id in (
    select max(id) from edit where field = 'list'
    group by latent, substr(value, 1, instr(value || char(10), char(10)) - 1)
)
"""
Version = tuple[int, ...]
"""Tells two states of a run's notes apart, also those of a run and of another in its place."""


def mark_of(side: str, text: str) -> str:
    """What names an explanation in verdicts: a digest of its side and its text."""
    return hashlib.sha256(f"{side}:{text}".encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Note:
    """What readers say of one latent.

    Attributes:
        accepted, rejected: the explanations (`mark_of`) that a reader has accepted or rejected.
    """

    label: str = ""
    note: str = ""
    bookmark: bool = False
    accepted: frozenset[str] = frozenset()
    rejected: frozenset[str] = frozenset()

    def with_edit(self, field: str, value: str) -> "Note":
        """The note after an edit."""
        if field == "bookmark":
            return replace(self, bookmark=value == "1")
        if field == "label":
            # Older versions wrote several lines.
            return replace(self, label=" ".join(lines_of(value)))
        if field != "verdict":
            return replace(self, **{field: value})
        sign, mark = value[:1], {value[1:]}
        accepted = self.accepted | mark if sign == "+" else self.accepted - mark
        rejected = self.rejected | mark if sign == "-" else self.rejected - mark
        return replace(self, accepted=accepted, rejected=rejected)


@dataclass(frozen=True)
class Edit:
    """One change: time (ISO 8601, UTC), field and value."""

    at: str
    field: str
    value: str


def notes_version(run: Path) -> Version:
    """The version of the run's notes; (-1,) if they cannot be read."""
    try:
        return Notes(run).version()
    except UsageError:
        return (-1,)


class Notes:
    """The notes of the run at `run`; the first edit creates the file."""

    def __init__(self, run: Path) -> None:
        self.path = run / "notes.sqlite"

    def version(self) -> Version:
        """Changes with every edit, and where another file takes the place; () without notes.

        Raises:
            UsageError: the file is damaged, or written by a newer saelab.
        """
        if not self._begun:
            return ()
        file = self.path.stat()
        with self._open(write=False) as connection:
            last = connection.execute("select coalesce(max(id), 0) from edit").fetchone()[0]
        # A replaced file may have as many edits, and even the same inode.
        return (int(last), file.st_mtime_ns, file.st_ino)

    def all(self) -> dict[int, Note]:
        """Every latent with a note; raises as `version` does."""
        if not self._begun:
            return {}
        with self._open(write=False) as connection:
            rows = connection.execute(_LAST).fetchall()
        notes: dict[int, Note] = {}
        for latent, field, value in rows:
            self._check(latent, field, value)
            notes[latent] = notes.get(latent, Note()).with_edit(field, value)
        return {latent: note for latent, note in notes.items() if note != Note()}

    def lists(self) -> Mapping[str, tuple[Entry, ...]]:
        """The lists of latents by name, each in its order; raises as `version` does."""
        if not self._begun:
            return {}
        with self._open(write=False) as connection:
            rows = connection.execute(_LISTED).fetchall()
        for latent, value in rows:
            self._check(latent, "list", value)
        return lists_of(rows)

    def history(self, latent: int) -> list[Edit]:
        """The edits of a latent, oldest first; raises as `version` does."""
        if not self._begun:
            return []
        with self._open(write=False) as connection:
            rows = connection.execute(
                "select at, field, value from edit where latent = ? order by id", (latent,)
            ).fetchall()
        for at, field, value in rows:
            self._check(latent, field, value, at)
        return [Edit(*row) for row in rows]

    def write(self, latent: int, field: str, value: str, was: str | None = None) -> str | None:
        """Make `value` the latent's label, note or bookmark ("1" or ""), or enter the other two.

        A verdict is "+", "-" or "0" (taken back), and the explanation's `mark_of`. A list's entry
        is its name, its place and a comment, as `lists` says.

        Returns:
            What another has written there since the writer read `was`; None if nothing. It is no
            longer shown, but `history` has it. Of an entry this is the comment.

        Raises:
            UsageError: there is no such field, the text is too long or, but for a note, of several
                lines, or the file cannot be written.
        """
        value = _fitting(latent, field, value)
        with self._open(write=True) as connection:
            there = _current(connection, latent, field, value) if was is not None else ""
            _insert(connection, _entered(connection, latent, field, value))
        seen, now, there = (_comparable(field, text) for text in (was or "", value, there))
        other = was is not None and there not in (seen, now)
        return there if other else None

    def write_all(self, edits: Iterable[tuple[int, str, str]]) -> None:
        """Write latents, fields and values, all or none; raises as `write`."""
        fitting = [(latent, field, _fitting(latent, field, v)) for latent, field, v in edits]
        if fitting:
            with self._open(write=True) as connection:
                for edit in fitting:
                    _insert(connection, _entered(connection, *edit))

    @property
    def writable(self) -> bool:
        """Whether an edit can be saved here."""
        return os.access(self.path.parent, os.W_OK) and (
            not self.path.exists() or os.access(self.path, os.W_OK)
        )

    @property
    def _begun(self) -> bool:
        return has_begun(self.path)

    def _check(self, latent: object, field: object, value: object, at: object = "") -> None:
        if not (isinstance(latent, int) and isinstance(field, str) and isinstance(at, str)):
            fits = False
        else:
            fits = isinstance(value, str) and len(value) <= LONGEST.get(field, -1)
            fits = fits and (field != "verdict" or bool(_VERDICT.fullmatch(value)))
        if not fits:
            raise UsageError(f"{self.path} holds a row that is no edit of a latent; remove it.")

    @contextmanager
    def _open(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        try:
            with closing(connect(self.path, write=write)) as connection:
                # One transaction: all of it is saved, or nothing.
                connection.execute("begin immediate" if write else "begin")
                yield connection
                connection.execute("commit")
        except (sqlite3.Error, OverflowError) as error:
            raise UsageError(self._reason(error, write=write)) from error

    def _reason(self, error: Exception, *, write: bool) -> str:
        if write and not self.writable:
            return (
                f"Nothing can be noted: {self.path.parent} is read-only; copy the run to where you "
                "may write."
            )
        does = "written" if write else "read"
        return f"{self.path} cannot be {does}: {error}."


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def _fitting(latent: int, field: str, value: str) -> str:
    if field not in get_args(Field) or latent < 0:
        fields = ", ".join(get_args(Field))
        raise UsageError(f"Latent {latent} has no {field!r}; it has {fields}.")
    value = _plain(value)
    if len(value) > LONGEST[field]:
        raise UsageError(
            f"The {field} of latent {latent} has {len(value)} characters, more than "
            f"{LONGEST[field]}; shorten it."
        )
    if field == "verdict" and not _VERDICT.fullmatch(value):
        raise UsageError(f"The verdict {value!r} on latent {latent} names no explanation.")
    if field == "label":
        check_one_line(value, f"The label of latent {latent}")
    if field != "list":
        return value
    entry = EntryText.of(value)
    if entry:
        check_one_line(comment_of(value), f"The comment on latent {latent} in {entry.name}")
    if entry is None:
        raise UsageError(
            f"Latent {latent} cannot be put on the list {value.partition(chr(10))[0][:40]!r}: a "
            f"name has 1 to {LONGEST_NAME} characters, a comment at most {LONGEST_COMMENT}."
        )
    return entry.value


def _current(connection: sqlite3.Connection, latent: int, field: str, value: str) -> str:
    """What stands there; of a list's entry, the one of the same list."""
    every = connection.execute(
        "select value from edit where latent = ? and field = ? order by id desc", (latent, field)
    )
    name = value.partition("\n")[0]
    same = (v for (v,) in every if field != "list" or v.partition("\n")[0] == name)
    return str(next(same, ""))


def _comparable(field: str, value: str) -> str:
    """What counts as another text: of a list's entry its comment, not its place."""
    if field != "list":
        return _plain(value)
    entry = EntryText.of(_plain(value))
    return (entry.comment or "on the list") if entry and entry.place else ""


def _entered(
    connection: sqlite3.Connection, latent: int, field: str, value: str
) -> list[tuple[int, str, str]]:
    """The edits to insert: of a list's entry, with the place that it is to have."""
    entry = EntryText.of(value) if field == "list" else None
    if entry is None:
        return [(latent, field, value)]
    there = lists_of(connection.execute(_LISTED).fetchall()).get(entry.name, ())
    return [(n, field, text) for n, text in settled(latent, entry, there)]


def _insert(connection: sqlite3.Connection, edits: Iterable[tuple[int, str, str]]) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    connection.executemany(
        "insert into edit (at, latent, field, value) values (?, ?, ?, ?)",
        ((now, *edit) for edit in edits),
    )

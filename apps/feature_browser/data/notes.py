"""Labels, notes and bookmarks of a run's latents, kept in RUN/notes.sqlite.

The file is a log: every edit inserts one row, and a latent's label is its latest edit. So two
processes that write at once lose nothing, even in the same field, and earlier labels stay readable.
The file is separate from features.h5, which may be rebuilt.

A run may come from anybody, and a database can hold more than rows: endless views, or triggers that
run when a row is written. So a file with anything but this log is refused.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from saelab.config import UsageError

SCHEMA = 1
PATIENCE_S = 15.0
"""Seconds that a write waits for another process's."""
LARGEST = 1 << 28
"""Largest size of the file in bytes."""
PATIENCE_READING_S = 3.0
"""Seconds that one use of the file may compute."""
LONGEST = {"label": 200, "note": 10_000, "bookmark": 1}
Field = Literal["label", "note", "bookmark"]

_CREATE = """
create table if not exists edit (
    id integer primary key,
    at text not null,
    latent integer not null check (latent >= 0),
    field text not null check (field in ('label', 'note', 'bookmark')),
    value text not null
);
create index if not exists edit_of on edit (latent, field, id);
"""
_LAST = """
select latent, field, value from edit
where id in (select max(id) from edit group by latent, field)
"""


@dataclass(frozen=True)
class Note:
    """The label, note and bookmark of one latent."""

    label: str = ""
    note: str = ""
    bookmark: bool = False


@dataclass(frozen=True)
class Edit:
    """One change: time (ISO 8601, UTC), field and value."""

    at: str
    field: str
    value: str


def notes_version(run: Path) -> int:
    """The version of the run's notes; -1 if they cannot be read."""
    try:
        return Notes(run).version()
    except UsageError:
        return -1


class Notes:
    """The notes of the run at `run`; the first edit creates the file."""

    def __init__(self, run: Path) -> None:
        self.path = run / "notes.sqlite"

    def version(self) -> int:
        """The number of edits so far; it changes with every one.

        Raises:
            UsageError: the file is damaged, or written by a newer saelab.
        """
        if not self._begun:
            return 0
        with self._open(write=False) as connection:
            return int(connection.execute("select coalesce(max(id), 0) from edit").fetchone()[0])

    def all(self) -> dict[int, Note]:
        """Every latent with a note; raises as `version` does."""
        if not self._begun:
            return {}
        with self._open(write=False) as connection:
            rows = connection.execute(_LAST).fetchall()
        notes: dict[int, Note] = {}
        for latent, field, value in rows:
            self._check(latent, field, value)
            known: bool | str = value == "1" if field == "bookmark" else value
            notes[latent] = replace(notes.get(latent, Note()), **{field: known})
        return {latent: note for latent, note in notes.items() if note != Note()}

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

    def write(self, latent: int, field: str, value: str) -> None:
        """Make `value` the latent's label, note or bookmark ("1" or "").

        Raises:
            UsageError: there is no such field, the text is too long, or the file cannot be
                written.
        """
        if field not in get_args(Field) or latent < 0:
            raise UsageError(f"Latent {latent} has no {field!r}; it has a label, note, bookmark.")
        value = value.strip()
        if len(value) > LONGEST[field]:
            raise UsageError(
                f"The {field} of latent {latent} has {len(value)} characters, more than "
                f"{LONGEST[field]}; shorten it."
            )
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._open(write=True) as connection:
            connection.execute(
                "insert into edit (at, latent, field, value) values (?, ?, ?, ?)",
                (now, latent, field, value),
            )

    @property
    def writable(self) -> bool:
        """Whether an edit can be saved here."""
        return os.access(self.path.parent, os.W_OK) and (
            not self.path.exists() or os.access(self.path, os.W_OK)
        )

    @property
    def _begun(self) -> bool:
        # Another process's first edit makes an empty file before it fills it.
        return self.path.is_file() and self.path.stat().st_size > 0

    def _check(self, latent: object, field: object, value: object, at: object = "") -> None:
        if not (isinstance(latent, int) and isinstance(field, str) and isinstance(at, str)):
            fits = False
        else:
            fits = isinstance(value, str) and len(value) <= LONGEST.get(field, -1)
        if not fits:
            raise UsageError(f"{self.path} holds a row that is no edit of a latent; remove it.")

    @contextmanager
    def _open(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        try:
            with closing(self._connect(write=write)) as connection:
                # One transaction: all of it is saved, or nothing.
                connection.execute("begin immediate" if write else "begin")
                yield connection
                connection.execute("commit")
        except (sqlite3.Error, OverflowError) as error:
            raise UsageError(self._reason(error, write=write)) from error

    def _connect(self, *, write: bool) -> sqlite3.Connection:
        if self.path.exists() and not (self.path.is_file() or self.path.is_dir()):
            raise UsageError(f"{self.path} is not a file.")
        if self._begun and self.path.stat().st_size > LARGEST:
            raise UsageError(f"{self.path} is larger than {LARGEST} bytes, so no notes.")
        # Each use opens its own connection, since sessions are threads in several processes.
        uri = f"{self.path.absolute().as_uri()}?mode={'rwc' if write else 'ro'}"
        connection = sqlite3.connect(uri, uri=True, timeout=PATIENCE_S, isolation_level=None)
        try:
            _restrict(connection)
            found = connection.execute("pragma user_version").fetchone()[0]
            if found > SCHEMA:
                raise UsageError(
                    f"{self.path} is of a newer saelab (schema {found}; this one reads {SCHEMA}); "
                    "update saelab."
                )
            if write and found < SCHEMA:
                connection.executescript(
                    f"begin immediate;{_CREATE}pragma user_version = {SCHEMA};commit;"
                )
            if not _is_log(connection):
                raise UsageError(f"{self.path} holds other things than notes; move it away.")
        except BaseException:
            connection.close()
            raise
        return connection

    def _reason(self, error: Exception, *, write: bool) -> str:
        if write and not self.writable:
            return (
                f"Nothing can be noted: {self.path.parent} is read-only; copy the run to where you "
                "may write."
            )
        does = "written" if write else "read"
        return f"{self.path} cannot be {does}: {error}."


def _restrict(connection: sqlite3.Connection) -> None:
    """Limit what a file can make this connection do."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1 << 20)
    connection.execute("pragma trusted_schema = off")
    connection.execute("pragma cell_size_check = on")
    until = time.monotonic() + PATIENCE_READING_S
    connection.set_progress_handler(lambda: time.monotonic() > until, 100_000)


def _is_log(connection: sqlite3.Connection) -> bool:
    """Whether the database consists exactly of what `_CREATE` makes."""
    return _schema(connection) == _own_schema()


@cache
def _own_schema() -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(_CREATE)
        return _schema(connection)


def _schema(connection: sqlite3.Connection) -> list[tuple[str, ...]]:
    return connection.execute(
        "select type, name, tbl_name, sql from sqlite_master order by name limit 10"
    ).fetchall()

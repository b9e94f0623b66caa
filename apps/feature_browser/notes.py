"""Labels, notes and bookmarks of a run's latents, kept in RUN/notes.sqlite.

The file is a log: every edit is one inserted row, and what a latent is called is its last. So two
processes that write at once lose nothing, not even where they change the same field, and earlier
wordings can be read again. It lies beside features.h5, which may be rebuilt without it.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from saelab.config import UsageError

SCHEMA = 1
PATIENCE_S = 15.0
"""How long a write waits for another process's."""
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
    """What was written of one latent."""

    label: str = ""
    note: str = ""
    bookmark: bool = False


@dataclass(frozen=True)
class Edit:
    """One change: when (ISO 8601, UTC), of what, to what."""

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
    """The notes of the run at `run`; the file appears with the first edit."""

    def __init__(self, run: Path) -> None:
        self.path = run / "notes.sqlite"

    def version(self) -> int:
        """The number of edits so far; it changes with every one.

        Raises:
            UsageError: the file is damaged, or of a newer saelab.
        """
        if not self._begun:
            return 0
        with self._open(write=False) as connection:
            return int(connection.execute("select coalesce(max(id), 0) from edit").fetchone()[0])

    def all(self) -> dict[int, Note]:
        """Every latent of which something is written; raises as `version` does."""
        if not self._begun:
            return {}
        with self._open(write=False) as connection:
            rows = connection.execute(_LAST).fetchall()
        notes: dict[int, Note] = {}
        for latent, field, value in rows:
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
            )
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
        """Whether an edit can be kept here."""
        return os.access(self.path.parent, os.W_OK) and (
            not self.path.exists() or os.access(self.path, os.W_OK)
        )

    @property
    def _begun(self) -> bool:
        # Another process's first edit makes an empty file before it fills it.
        return self.path.is_file() and self.path.stat().st_size > 0

    @contextmanager
    def _open(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        try:
            with closing(self._connect(write=write)) as connection:
                # One transaction: all of it is kept, or nothing.
                connection.execute("begin immediate" if write else "begin")
                yield connection
                connection.execute("commit")
        except sqlite3.Error as error:
            raise UsageError(self._reason(error, write=write)) from error

    def _connect(self, *, write: bool) -> sqlite3.Connection:
        # Each use opens its own connection: sessions are threads, and run in several processes.
        uri = f"{self.path.resolve().as_uri()}?mode={'rwc' if write else 'ro'}"
        connection = sqlite3.connect(uri, uri=True, timeout=PATIENCE_S, isolation_level=None)
        try:
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
        except BaseException:
            connection.close()
            raise
        return connection

    def _reason(self, error: sqlite3.Error, *, write: bool) -> str:
        if write and not self.writable:
            return (
                f"Nothing can be noted: {self.path.parent} is read-only; copy the run to where you "
                "may write."
            )
        does = "written" if write else "read"
        return f"{self.path} cannot be {does}: {error}."

"""The file of a run's notes: a SQLite database that consists of one table, a log of edits.

A run may come from anybody, and a database can hold more than rows: endless views, or triggers that
run when a row is written. So a file with anything but this log is refused.
"""

import sqlite3
import time
from contextlib import closing
from functools import cache
from pathlib import Path

from saelab.config import UsageError

SCHEMA = 3
"""Schema 1 knew no verdicts, 2 no lists; the first edit makes a file of them one of schema 3."""
PATIENCE_S = 15.0
"""Seconds that a write waits for another process's."""
LARGEST = 1 << 28
"""Largest size of the file in bytes."""
PATIENCE_READING_S = 3.0
"""Seconds that one use of the file may compute."""

_FIELDS = {
    1: "'label', 'note', 'bookmark'",
    2: "'label', 'note', 'bookmark', 'verdict'",
    3: "'label', 'note', 'bookmark', 'verdict', 'list'",
}
_CREATE = """
create table if not exists edit (
    id integer primary key,
    at text not null,
    latent integer not null check (latent >= 0),
    field text not null check (field in ({fields})),
    value text not null
);
create index if not exists edit_of on edit (latent, field, id);
"""
_RENEW = """
alter table edit rename to earlier;
drop index edit_of;
{create}
insert into edit select * from earlier;
drop table earlier;
"""


def has_begun(path: Path) -> bool:
    """Whether there is a log: another process's first edit makes an empty file, then fills it."""
    return path.is_file() and path.stat().st_size > 0


def connect(path: Path, *, write: bool) -> sqlite3.Connection:
    """A connection to the log at `path`; with `write`, it is made, or brought to SCHEMA, first.

    Raises:
        UsageError: the file is none, too large, newer, or holds anything else.
        sqlite3.Error: it cannot be read or written.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UsageError(f"{path} is not a file.")
    if has_begun(path) and path.stat().st_size > LARGEST:
        raise UsageError(f"{path} is larger than {LARGEST} bytes, so no notes.")
    # Each use opens its own connection, since sessions are threads in several processes.
    uri = f"{path.absolute().as_uri()}?mode={'rwc' if write else 'ro'}"
    connection = sqlite3.connect(uri, uri=True, timeout=PATIENCE_S, isolation_level=None)
    try:
        _restrict(connection)
        found = connection.execute("pragma user_version").fetchone()[0]
        if found > SCHEMA:
            raise UsageError(
                f"{path} is of a newer saelab (schema {found}; this one reads {SCHEMA}); "
                "update saelab."
            )
        if write and not found:
            _run(connection, _create(SCHEMA))
        # Of any schema: another process may have brought the file to the next one just now.
        if _schema(connection) not in map(_own_schema, _FIELDS):
            raise UsageError(f"{path} holds other things than notes; move it away.")
        if write and found and found < SCHEMA:
            _run(connection, _RENEW.format(create=_create(SCHEMA)))
    except BaseException:
        connection.close()
        raise
    return connection


def _restrict(connection: sqlite3.Connection) -> None:
    """Limit what a file can make this connection do."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1 << 20)
    connection.execute("pragma trusted_schema = off")
    connection.execute("pragma cell_size_check = on")
    until = time.monotonic() + PATIENCE_READING_S
    connection.set_progress_handler(lambda: time.monotonic() > until, 100_000)


def _run(connection: sqlite3.Connection, script: str) -> None:
    connection.executescript(f"begin immediate;{script}pragma user_version = {SCHEMA};commit;")


def _create(schema: int) -> str:
    return _CREATE.format(fields=_FIELDS[schema])


@cache
def _own_schema(schema: int) -> list[tuple[str, ...]]:
    """What a database that consists of this log alone has."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(_create(schema))
        return _schema(connection)


def _schema(connection: sqlite3.Connection) -> list[tuple[str, ...]]:
    return connection.execute(
        "select type, name, tbl_name, sql from sqlite_master order by name limit 10"
    ).fetchall()

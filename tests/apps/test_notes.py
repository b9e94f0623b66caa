import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from saelab.analysis.notes import Note, Notes, mark_of
from saelab.config import UsageError


def test_what_is_written_is_read_again_by_another_reader(tmp_path: Path):
    notes = Notes(tmp_path)
    notes.write(5, "label", " a woman is to be referred to ")
    notes.write(5, "bookmark", "1")
    notes.write(7, "note", "fires\ntwice")
    assert Notes(tmp_path).all() == {
        5: Note("a woman is to be referred to", "", bookmark=True),
        7: Note(note="fires\ntwice"),
    }


def test_without_notes_nothing_is_read_and_no_file_is_made(tmp_path: Path):
    notes = Notes(tmp_path)
    assert (notes.version(), notes.all(), notes.history(0)) == ((), {}, [])
    assert not list(tmp_path.iterdir())


def test_a_latent_whose_notes_were_taken_back_has_none_but_a_history(tmp_path: Path):
    notes = Notes(tmp_path)
    for value in ("first", "second", ""):
        notes.write(3, "label", value)
    assert notes.all() == {}
    assert [edit.value for edit in notes.history(3)] == ["first", "second", ""]


def test_every_edit_changes_the_version(tmp_path: Path):
    notes = Notes(tmp_path)
    versions = [notes.version()]
    for value in ("a", "b", "b"):
        notes.write(0, "label", value)
        versions.append(notes.version())
    assert len(set(versions)) == 4


def test_text_that_looks_like_sql_is_only_text(tmp_path: Path):
    hostile = "'); drop table edit; --"
    Notes(tmp_path).write(1, "label", hostile)
    assert Notes(tmp_path).all()[1].label == hostile


@pytest.mark.parametrize(
    ("latent", "field", "value"), [(0, "name", "x"), (-1, "label", "x"), (0, "label", "x" * 201)]
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    tmp_path: Path, latent: int, field: str, value: str
):
    with pytest.raises(UsageError):
        Notes(tmp_path).write(latent, field, value)
    assert not list(tmp_path.iterdir())


WRITER = """
import sys
from pathlib import Path
from saelab.analysis.notes import Notes

for number in range(int(sys.argv[3])):
    Notes(Path(sys.argv[1])).write(number % 4, "label", f"{sys.argv[2]}:{number}")
"""


def test_several_processes_that_write_at_once_lose_no_edit(tmp_path: Path):
    processes, n = 3, 12
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    jobs = [subprocess.Popen([*command, str(w), str(n)]) for w in range(processes)]
    assert [job.wait(60) for job in jobs] == [0] * processes
    edits = [edit.value for latent in range(4) for edit in Notes(tmp_path).history(latent)]
    assert sorted(edits) == sorted(f"{w}:{i}" for w in range(processes) for i in range(n))


def test_a_newer_file_is_left_alone(tmp_path: Path):
    Notes(tmp_path).write(0, "label", "x")
    connection = sqlite3.connect(tmp_path / "notes.sqlite")
    connection.execute("pragma user_version = 99")
    connection.close()
    for use in (Notes(tmp_path).all, lambda: Notes(tmp_path).write(0, "label", "y")):
        with pytest.raises(UsageError, match="newer saelab"):
            use()


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to look at" * 20, b"\0" * 100]
)
def test_a_damaged_file_is_said_in_one_sentence(tmp_path: Path, content: bytes):
    (tmp_path / "notes.sqlite").write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read"):
        Notes(tmp_path).all()
    with pytest.raises(UsageError, match="cannot be written"):
        Notes(tmp_path).write(0, "label", "x")


ENDLESS = "with recursive n(i) as (select 1 union all select i + 1 from n)"
ROW = "insert into edit (at, latent, field, value) values"


@pytest.mark.parametrize(
    ("script", "reads"),
    [
        ("create trigger t after insert on edit begin delete from edit; end", False),
        (f"drop table edit; create view edit as {ENDLESS} select i as id, '' as at, 0 as latent, "
         "'label' as field, '' as value from n", False),
        ("create table other (x)", False),
        ("drop index edit_of", False),
        ("alter table edit add column more generated always as (hex(value))", False),
        (f"{ROW} ('', 1, 'label', x'ff')", True),
        (f"{ROW} (x'00', 1, 'label', 'a')", True),
        (f"{ROW} ('', 1, 'note', printf('%.*c', 20000, 'a'))", True),
        (f"pragma ignore_check_constraints = on; {ROW} ('', 1, 'other', 'a')", True),
        (f"pragma ignore_check_constraints = on; {ROW} ('', 'one', 'label', 'a')", True),
        (f"{ROW} ('', 1, 'label', cast(x'ff' as text))", True),
    ],
)  # fmt: skip
def test_a_hostile_file_is_not_read(tmp_path: Path, script: str, reads: bool):
    """Where `reads`, only its rows are wrong, and new ones may still be written."""
    Notes(tmp_path).write(0, "label", "x")
    with closing(sqlite3.connect(tmp_path / "notes.sqlite")) as connection:
        connection.executescript(f"{script};")
        connection.commit()
    with pytest.raises(UsageError, match=r"notes\.sqlite") as told:
        _ = Notes(tmp_path).all(), Notes(tmp_path).history(1)
    assert "\n" not in str(told.value)
    if not reads:
        with pytest.raises(UsageError, match="other things than notes"):
            Notes(tmp_path).write(0, "label", "y")


def test_a_pipe_in_the_place_of_the_notes_is_not_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "notes.sqlite")
    assert Notes(tmp_path).all() == {}
    with pytest.raises(UsageError, match="is not a file"):
        Notes(tmp_path).write(0, "label", "x")


def test_a_directory_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Tests may run as root, whom no permission stops.
    (tmp_path / "notes.sqlite").mkdir()
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UsageError, match="is read-only"):
        Notes(tmp_path).write(0, "label", "x")


def test_a_verdict_is_of_one_explanation_until_it_is_taken_back(tmp_path: Path):
    notes, (one, other) = Notes(tmp_path), (mark_of("input", text) for text in "ab")
    for value in (f"+{one}", f"-{other}", f"-{one}"):
        notes.write(3, "verdict", value)
    assert notes.all() == {3: Note(rejected=frozenset({one, other}))}
    for mark in (one, other):
        notes.write(3, "verdict", f"0{mark}")
    assert notes.all() == {}
    with pytest.raises(UsageError, match="names no explanation"):
        notes.write(3, "verdict", "+x")


def test_who_writes_over_anothers_words_is_told_them_and_both_are_kept(tmp_path: Path):
    mine, theirs = Notes(tmp_path), Notes(tmp_path)
    assert mine.write(3, "label", "first", was="") is None
    assert theirs.write(3, "label", "second", was="first") is None
    assert mine.write(3, "label", "third", was=" first ") == "second"
    assert mine.write(3, "label", "third", was="second") is None
    assert [edit.value for edit in mine.history(3)] == ["first", "second", "third", "third"]


def test_another_run_in_the_same_place_has_another_version(tmp_path: Path):
    Notes(tmp_path).write(3, "label", "of the first run")
    version = Notes(tmp_path).version()
    (tmp_path / "notes.sqlite").unlink()
    Notes(tmp_path).write(3, "label", "of the second run")
    assert Notes(tmp_path).version() != version


def test_a_file_of_the_first_schema_is_read_and_written(tmp_path: Path):
    Notes(tmp_path).write(3, "label", "old")
    with closing(sqlite3.connect(tmp_path / "notes.sqlite")) as connection:
        connection.executescript(
            "alter table edit rename to e; drop index edit_of; create table edit (\n"
            "    id integer primary key,\n    at text not null,\n"
            "    latent integer not null check (latent >= 0),\n"
            "    field text not null check (field in ('label', 'note', 'bookmark')),\n"
            "    value text not null\n); insert into edit select * from e; drop table e;"
            "create index if not exists edit_of on edit (latent, field, id);"
            "pragma user_version = 1;"
        )
    assert Notes(tmp_path).all() == {3: Note("old")}
    mark = mark_of("input", "text")
    Notes(tmp_path).write(3, "verdict", f"+{mark}")
    assert Notes(tmp_path).all() == {3: Note("old", accepted=frozenset({mark}))}
    assert [edit.value for edit in Notes(tmp_path).history(3)] == ["old", f"+{mark}"]


def test_many_edits_are_written_together_or_not_at_all(tmp_path: Path):
    notes = Notes(tmp_path)
    with pytest.raises(UsageError, match="201 characters"):
        notes.write_all([(1, "label", "fits"), (2, "label", "x" * 201)])
    assert notes.all() == {}
    notes.write_all([(1, "label", "fits"), (2, "bookmark", "1")])
    assert notes.all() == {1: Note("fits"), 2: Note(bookmark=True)}

"""Named lists of latents: their order, their safety, their file."""

import json
import random
import threading
from pathlib import Path

import pytest

from saelab.analysis.lists import Entry, EntryText, lists_of, settled
from saelab.analysis.lists_file import (
    import_lists,
    list_of,
    parsed_lists,
    take_back,
    values_of,
    written_lists,
)
from saelab.analysis.notes import Note, Notes
from saelab.config import UsageError

ODD = "odd ones"


def put(
    run: Path, latent: int, place: str, comment: str = "", was: str | None = None
) -> str | None:
    return Notes(run).write(latent, "list", EntryText(ODD, place, comment).value, was)


def order(run: Path) -> list[int]:
    return [one.latent for one in Notes(run).lists().get(ODD, ())]


def test_a_list_keeps_the_order_that_moves_give_it():
    """Against a Python list, in as many moves as exhaust the numbers between two places."""
    draw, expected = random.Random(0), list(range(6))
    edits: dict[int, str] = {}

    def move(latent: int, place: str) -> list[Entry]:
        there = lists_of(edits.items()).get(ODD, ())
        edits.update(settled(latent, EntryText(ODD, place, f"comment {latent}"), there))
        return list(lists_of(edits.items())[ODD])

    for latent in expected:
        move(latent, "+")
    for turn in range(300):
        # Mostly the same gap, until no number is left in it.
        mover = expected[2] if turn % 9 else draw.choice(expected)
        before = expected[1] if turn % 9 else draw.choice([n for n in expected if n != mover])
        expected.remove(mover)
        expected.insert(expected.index(before), mover)
        found = move(mover, f"<{before}")
        assert [one.latent for one in found] == expected
        assert [one.comment for one in found] == [f"comment {latent}" for latent in expected]


def test_an_entry_is_commented_taken_away_and_brought_back(tmp_path: Path):
    for latent in (7, 3, 5):
        put(tmp_path, latent, "+")
    put(tmp_path, 3, "+", " two words ")
    was = Notes(tmp_path).history(3)[-1].value
    put(tmp_path, 3, "")
    assert order(tmp_path) == [7, 5]
    Notes(tmp_path).write(3, "list", was)
    assert order(tmp_path) == [7, 3, 5]
    assert Notes(tmp_path).lists()[ODD][1].comment == "two words"
    put(tmp_path, 7, ">")
    assert order(tmp_path) == [3, 5, 7]
    assert Notes(tmp_path).all() == {}


def test_lists_stand_beside_other_notes_and_each_other(tmp_path: Path):
    notes = Notes(tmp_path)
    notes.write(1, "label", "a label")
    put(tmp_path, 1, "+", "here")
    notes.write(1, "list", "b\n+\nthere")
    assert notes.all() == {1: Note("a label")}
    assert {name: one[0].comment for name, one in notes.lists().items()} == {
        "b": "there",
        ODD: "here",
    }


def test_who_writes_over_anothers_comment_is_told_it_but_moves_disturb_nobody(tmp_path: Path):
    absent = EntryText(ODD).value
    assert put(tmp_path, 4, "+", "mine", was=absent) is None
    seen = Notes(tmp_path).history(4)[-1].value
    put(tmp_path, 5, "+")
    assert put(tmp_path, 4, ">", "mine", was=seen) is None
    put(tmp_path, 4, "+", "theirs")
    assert put(tmp_path, 4, "+", "mine again", was=seen) == "theirs"
    put(tmp_path, 4, "")
    assert put(tmp_path, 4, "+", "once more", was=seen) == ""


def test_two_who_add_at_once_lose_no_latent(tmp_path: Path):
    def add(numbers: range) -> None:
        for latent in numbers:
            put(tmp_path, latent, "+")

    jobs = [threading.Thread(target=add, args=(range(n, 8, 2),)) for n in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert sorted(order(tmp_path)) == list(range(8))


@pytest.mark.parametrize("value", ["", "x" * 81 + "\n+", "a\n*", "a\n<", f"a\n+\n{'x' * 1001}"])
def test_what_is_no_entry_is_refused(tmp_path: Path, value: str):
    with pytest.raises(UsageError, match="be put on the list"):
        Notes(tmp_path).write(0, "list", value)
    assert not list(tmp_path.iterdir())


def test_a_file_of_lists_is_read_as_it_was_written(tmp_path: Path):
    for latent in (9, 2, 30):
        put(tmp_path, latent, "+", "“quoted”, with\ta tab" if latent == 2 else "")
    Notes(tmp_path).write(2, "list", "b\n+")
    raw = written_lists(Notes(tmp_path).lists())
    there = tmp_path / "there"
    there.mkdir()
    assert import_lists(there, 31, parsed_lists(raw, "f")) == 4
    assert written_lists(Notes(there).lists()) == raw
    assert [one.latent for one in list_of(there, ODD)] == [9, 2, 30]
    with pytest.raises(UsageError, match="no latent 30; the SAE has 0 to 29"):
        import_lists(there, 30, parsed_lists(raw, "f"))
    with pytest.raises(UsageError, match=r"has no list 'c'; it has b, odd ones"):
        list_of(there, "c")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"list": "a", "latent": -1}', "names no latent"),
        (b'{"list": "a", "latent": true}', "names no latent"),
        (b'{"list": "", "latent": 1}', "no `list`"),
        (b'{"list": "a\\nb", "latent": 1}', "no `list`"),
        (b'{"list": "a", "latent": 1, "more": 1}', "has 'more'"),
        (b"[1]", "an entry has"),
        (
            b'{"list": "a", "latent": 1}\n{"list": "a", "latent": 2, "comment": "b\\nc"}',
            "Line 2 of f: the comment has 2 lines",
        ),
        (b"", "holds no lists"),
    ],
)
def test_a_line_that_is_no_entry_is_named(line: bytes, said: str):
    with pytest.raises(UsageError, match=said):
        parsed_lists(line, "f")


def test_an_import_is_taken_back_but_for_what_was_changed_since(tmp_path: Path):
    for latent in (7, 3):
        put(tmp_path, latent, "+", "mine")
    was = Notes(tmp_path).lists()
    rows = [(ODD, 3, "theirs"), (ODD, 9, ""), ("new", 7, ""), ("new", 8, "")]
    lists = parsed_lists(
        b"\n".join(
            json.dumps(dict(zip(("list", "latent", "comment"), row, strict=True))).encode()
            for row in rows
        ),
        "f",
    )
    before = values_of(tmp_path, lists)
    import_lists(tmp_path, 10, lists)
    after = values_of(tmp_path, lists)
    assert take_back(tmp_path, before, after) == 0
    assert Notes(tmp_path).lists() == was
    import_lists(tmp_path, 10, lists)
    after = values_of(tmp_path, lists)
    put(tmp_path, 9, "+", "kept")
    assert take_back(tmp_path, before, after) == 1
    assert order(tmp_path) == [7, 3, 9]
    assert "new" not in Notes(tmp_path).lists()


@pytest.mark.parametrize("end", ["\n", "\r", "\u2028"])
def test_a_comment_and_a_label_are_one_line(tmp_path: Path, end: str):
    with pytest.raises(UsageError, match="latent 3 in odd ones has 2 lines; write one"):
        put(tmp_path, 3, "+", f"two{end}lines")
    with pytest.raises(UsageError, match="label of latent 3 has 2 lines; write one"):
        Notes(tmp_path).write(3, "label", f"two{end}lines")
    assert not list(tmp_path.iterdir())
    # One that an older version wrote is read as its field shows it.
    (found,) = lists_of([(3, f"{ODD}\n1\ntwo{end}lines")])[ODD]
    assert found == Entry(3, 1.0, "two lines")
    assert Note().with_edit("label", f"two{end}lines").label == "two lines"


def test_a_hostile_row_is_not_taken_for_an_entry(tmp_path: Path):
    assert EntryText.of("a\n1e400") is not None
    text = EntryText.of("a\n1e400")
    assert text
    assert text.entry(1) is None
    assert EntryText("a", "1.5", "c").entry(2) == Entry(2, 1.5, "c")

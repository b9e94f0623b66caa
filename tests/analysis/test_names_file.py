"""Names of latents as a file: what is written is read again, and damage is told."""

import json
import shutil

import pytest

from saelab.analysis.explain.judging import Merit
from saelab.analysis.explain.records import Explanation, ExplanationSet, explanation_sets
from saelab.analysis.explain.scores import OWN, ExplanationScores, write_scores
from saelab.analysis.names_file import names_of, parsed_names
from saelab.analysis.notes import Notes, mark_of
from saelab.cli import main
from saelab.config import UsageError
from saelab.lock import writing
from saelab.training.run import Run

HOSTILE = '=cmd|"\u202e,<b>'


@pytest.fixture
def named(small_run, tmp_path):
    """A run with readers' words and two sides explained, and another one of the same SAE."""
    runs = [Run(shutil.copytree(small_run.path, tmp_path / name)) for name in ("one", "other")]
    path = runs[0].path
    for side, text in (("input", "a dog"), ("output", "a cat")):
        texts = ExplanationSet(path / "explanations" / side, "big", "file", "p", "ab", side=side)
        texts.by_latent = {5: Explanation(text, "2024-07-26T00:00")}
        texts.write()
        if side == "input":
            found = ExplanationScores("j", by_source={OWN: {5: {"detection": Merit(0.7, None, 4)}}})
            with writing(path):
                write_scores(texts, found)
    notes = Notes(path)
    notes.write(5, "label", HOSTILE)
    notes.write(7, "note", "=two\nlines")
    notes.write(7, "bookmark", "1")
    notes.write(5, "verdict", f"+{mark_of('output', 'a cat')}")
    return runs


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_another_run_gets_all_that_was_written_and_a_second_time_nothing(
    named, form, tmp_path, capsys
):
    one, other = named
    file = tmp_path / f"names.{form}"
    assert main(["names", str(one.path), "--out", str(file)]) == 0
    assert main(["names", str(other.path), "--import", str(file)]) == 0
    assert "3 labels, notes and bookmarks, 1 verdicts and 2 explanations" in capsys.readouterr().out
    assert Notes(other.path).all() == Notes(one.path).all()
    kept = [(r["latent"], r.get("explanation"), r.get("side"), r.get("verdict"), r.get("model"))
            for run in named for r in names_of(run.path)]  # fmt: skip
    assert sorted(map(str, kept[: len(kept) // 2])) == sorted(map(str, kept[len(kept) // 2 :]))
    scores = [row.get("score") for row in names_of(one.path)]
    assert 0.7 in scores
    assert main(["names", str(other.path), "--import", str(file)]) == 0
    assert "0 labels, notes and bookmarks, 0 verdicts and 0 explanations" in capsys.readouterr().out
    assert len(Notes(other.path).history(5)) == 2


def test_names_from_elsewhere_make_sets_of_their_own(named):
    _, other = named
    rows = [{"latent": 3, "explanation": "x", "model": "A/B c"}, {"latent": 4, "explanation": "y"}]
    path = other.path.parent / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert main(["names", str(other.path), "--import", str(path)]) == 0
    found = {texts.name: (texts.kind, texts.model) for texts in explanation_sets(other.path)}
    assert found == {
        "b-c-input-imported": ("import", "A/B c"),
        "elsewhere-input-imported": ("import", "elsewhere"),
    }


@pytest.mark.parametrize(
    ("form", "text", "told"),
    [
        ("csv", "a,b\n1,2\n", "no column `latent`"),
        ("csv", 'latent,label\n1,"x\n', "is no CSV"),
        ("csv", "latent,label\n1,x,y\n", "more values"),
        ("csv", "latent,label\n-1,x\n", "names no latent"),
        ("csv", "latent\n", "holds no names"),
        ("jsonl", "[]", "no JSON object"),
        ("jsonl", '{"latent": 4, "lable": "x"}', "has the field 'lable'"),
        ("jsonl", '{"latent": true}', "names no latent"),
        ("jsonl", '{"latent": 1, "label": 3}', "no text of up to 200"),
        ("jsonl", json.dumps({"latent": 1, "explanation": "\0" * 90}), "no text of up to 300"),
        ("jsonl", '{"latent": 1, "explanation": "x", "side": "both"}', "known are input, output"),
        ("jsonl", '{"latent": 1, "verdict": "accepted"}', "without an explanation"),
    ],
)
def test_a_damaged_file_is_told_in_one_sentence(form, text, told):
    with pytest.raises(UsageError, match=told) as error:
        parsed_names(text.encode(), form, "f")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("form", "text"),
    [("csv", 'latent,label\n1,"a\n b"\n'), ("jsonl", r'{"latent": 1, "label": "a\n b"}')],
)
def test_a_label_of_several_lines_as_older_versions_wrote_is_read_as_one(form, text):
    assert parsed_names(text.encode(), form, "f")[0]["label"] == "a b"


def test_a_long_label_keeps_one_line_and_says_that_it_is_cut(named, capsys):
    one, _ = named
    Notes(one.path).write(9, "label", "long " * 40)
    assert main(["names", str(one.path)]) == 0
    said = capsys.readouterr().out
    assert sum("long" in line for line in said.splitlines()) == 1
    assert "--out FILE writes them whole" in said


def test_two_labels_of_one_latent_change_nothing(named, tmp_path, capsys):
    _, other = named
    (tmp_path / "n.csv").write_text("latent,label\n1,x\n2,y\n1,z\n2,y\n")
    assert main(["names", str(other.path), "--import", str(tmp_path / "n.csv")]) == 2
    assert "Latent 1 has two labels, 'x' and 'z'; leave one." in capsys.readouterr().err
    assert Notes(other.path).all() == {}


def test_a_latent_that_is_not_there_changes_nothing(named, tmp_path, capsys):
    _, other = named
    (tmp_path / "n.csv").write_text("latent,label\n1,x\n99999,y\n")
    assert main(["names", str(other.path), "--import", str(tmp_path / "n.csv")]) == 2
    assert "There is no latent 99999" in capsys.readouterr().err
    assert Notes(other.path).all() == {}
    assert main(["names", str(other.path), "--out", str(tmp_path / "n.txt")]) == 2
    assert main(["names", str(other.path)]) == 0
    assert "No latent has a label" in capsys.readouterr().out

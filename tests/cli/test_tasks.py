"""`saelab tasks` as a user meets it: own files, sae-probes, continuing, and what is refused."""

import csv
import io
import json
import random
import shutil
import sys
from types import SimpleNamespace

import pyarrow
import pytest
from rich.console import Console

from saelab.cli import main
from saelab.cli.tables import print_section
from saelab.evaluation.results import load_evaluation
from saelab.evaluation.tasks.options import Cost, FigureWithInterval
from saelab.evaluation.tasks.pooled import TextReader
from saelab.evaluation.tasks.summary import Headline, summary
from saelab.training.run import Run

WORDS = ("big", "sat", "on", "a", "red", ".", "and", "ran", "tree")
ANIMALS = ("cat", "dog", "mat")
SIZES = ("--n-train", 60, "--n-test", 45)


@pytest.fixture
def run(small_run, tmp_path):
    return Run(shutil.copytree(small_run.path, tmp_path / "topk"))


def sentences(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Distinct sentences of known words; `label` is their last word, `spurious` their first."""
    drawing = random.Random(seed)
    found: dict[str, dict[str, str]] = {}
    while len(found) < n:
        label, first = drawing.choice(ANIMALS), drawing.choice(("the", "under"))
        text = " ".join([first, *drawing.choices(WORDS, k=6), label])
        found[text] = {"text": text, "label": label, "spurious": first}
    return list(found.values())


def table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def tasks(*arguments: object) -> int:
    return main(["tasks", *map(str, arguments), "--device", "cpu"])


def test_own_texts_are_probed_perturbed_saved_and_not_measured_twice(
    run, tmp_path, capsys, monkeypatch
):
    own = table(tmp_path / "animals.csv", sentences(400))
    pairs = [row for row in sentences(400, 1) if row["label"] != "mat"]
    lines = "\n".join(json.dumps(row) for row in pairs)
    (tmp_path / "pairs.jsonl").write_text(lines)
    command = (run.path, "--probe", own, "--tpp", own, "--scr", tmp_path / "pairs.jsonl", *SIZES)
    assert tasks(*command) == 0
    said = capsys.readouterr()
    for word in ("animals: cat", "mean of 3", "animals (3)", "label", "memory"):
        assert word in said.out
    assert said.out.splitlines()[-1] == str(run.path / "evaluation")
    found = load_evaluation(run)
    # The last word's own row is part of the mean, and every row knows the position it is at.
    assert found.task_probing.tasks["animals: cat"].dense.accuracy > 0.75
    assert list(found.task_scr.tasks["pairs"].directions) == ["label", "spurious"]
    before = (run.path / "evaluation" / "task_probing.json").read_bytes()
    monkeypatch.setattr(TextReader, "rows", None)
    assert tasks(*command) == 0
    assert (run.path / "evaluation" / "task_probing.json").read_bytes() == before
    assert capsys.readouterr().out == said.out
    # Without a task: all of the run in one table, also as CSV.
    file = tmp_path / "all.csv"
    assert tasks(run.path, "--csv", file) == 0
    assert "mean of saebench" in capsys.readouterr().out
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [row["task"] for row in rows] == ["probing"] * 4 + ["TPP"] + ["SCR"] * 2
    means, tpp = found.task_probing.accuracy["saebench"], found.task_tpp.tasks["animals"]
    assert float(rows[3]["value"]) == means["latents"][-1].value
    assert float(rows[3]["beside_value"]) == means["dense"][0].value
    assert float(rows[4]["seconds"]) == tpp.cost.seconds
    # The classes of one data set were measured together.
    assert [bool(row["tokens"]) for row in rows[:3]] == [True, False, False]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package as sae-probes is: zstd tables below `data`, and a module that must not run."""
    place = tmp_path / "site" / "sae_probes"
    tables = place / "data" / "cleaned_data"
    tables.mkdir(parents=True)
    (place / "__init__.py").write_text("raise ImportError('it needs TransformerLens 3')")
    kinds = {"7_cats": ("cat", "dog"), "9_mats": ("mat", "dog"), "8_animals": ANIMALS}
    master = [("Dataset save name", "Data type")]
    for name, labels in kinds.items():
        kind = "Binary Classification" if len(labels) == 2 else "Multiclass Classification"
        master.append((f"cleaned_data/{name}.csv", kind))
        rows = [(s["text"], s["label"]) for s in sentences(300) if s["label"] in labels]
        pack(tables / f"{name}.csv.zst", [("prompt", "target"), *rows, rows[0]])
    pack(place / "data" / "probing_datasets_MASTER.csv.zst", master)
    monkeypatch.syspath_prepend(str(place.parent))
    monkeypatch.delitem(sys.modules, "sae_probes", raising=False)
    return tables


def pack(path, rows):
    text = "\n".join(",".join(row) for row in rows).encode()
    with pyarrow.output_stream(path, compression="zstd") as file:
        file.write(text)


def test_one_command_measures_the_tasks_of_sae_probes_and_leaves_out_a_damaged_one(
    run, package, tmp_path, capsys
):
    whole = (package / "9_mats.csv.zst").read_bytes()
    (package / "9_mats.csv.zst").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "bench"
    assert tasks(run.path, "--probe", "sae-probes", *SIZES, "--saebench", out) == 0
    said = capsys.readouterr()
    assert "9_mats is left out" in said.err
    assert "1 of 201 rows repeat" in said.err or "repeat an earlier text" in said.err
    found = load_evaluation(run).task_probing.tasks
    assert list(found) == ["7_cats"]
    # The last token is the label itself.
    assert found["7_cats"].dense.accuracy == 1
    assert found["7_cats"].setting["rules"] == "sae-probes"
    (package / "9_mats.csv.zst").write_bytes(whole)
    assert tasks(run.path, "--probe", "sae-probes", *SIZES) == 0
    found = load_evaluation(run).task_probing
    assert list(found.tasks) == ["7_cats", "9_mats"]
    mean = found.accuracy["sae-probes"]["dense"][0].value
    assert mean == sum(task.dense.accuracy for task in found.tasks.values()) / 2
    file = out / "sparse_probing_sae_probes" / "topk_custom_sae_eval_results.json"
    values = json.loads(file.read_text())
    assert values["eval_result_metrics"]["llm"]["llm_test_accuracy"] == 1
    assert values["sae_cfg_dict"]["d_sae"] == 32


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_table_of_all_tasks_wraps_names_and_breaks_no_number(width):
    name = "106_hate_hate+107_hate_offensive (saebench): 107_hate_offensive *"
    value, cost = FigureWithInterval(0.93, 0.863, 0.966), Cost(15.0, 10**9, 7127)
    told = [Headline("SCR", name, "10 latents", value, ("gap", 0.5), cost)] * 2
    section = summary({"scr": SimpleNamespace(headlines=lambda: told)})
    console = Console(width=width, file=io.StringIO())
    print_section(console, section)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert sum("SCR: 10 latents" in line for line in lines) == 1
    rows = [line for line in lines if "93.0" in line]
    assert len(rows) == 2
    for cell in ("93.0 [86.3, 96.6]", " 50.0 ", " 7,127 ", " 15 s ", " 1 GB "):
        assert cell in rows[0]


def test_a_single_table_and_a_pair_that_shares_texts_are_named(run, package, capsys):
    pair = "sae-probes:cats+sae-probes:9_mats"
    assert tasks(run.path, "--tpp", "sae-probes:animals", *SIZES) == 0
    assert "8_animals (3)" in capsys.readouterr().out
    assert tasks(run.path, "--scr", pair, *SIZES) == 2
    assert "7_cats+9_mats has one class only ('dog' of '7_cats')" in capsys.readouterr().err
    assert tasks(run.path, "--scr", "sae-probes:cats") == 2
    assert "one label only" in capsys.readouterr().err
    assert tasks(run.path, "--probe", "sae-probes:nothing") == 2
    assert "has no task 'nothing'" in capsys.readouterr().err


BAD = {
    "a.csv: ragged": ("text,label\none,cat\ntwo,dog,and more\n", "Line 3 of"),
    "b.csv: no column": ("sentence,label\none,cat\n", "no field 'text'"),
    "c.csv: one class": ("text,label\none,cat\ntwo,cat\n", "one class only"),
    "d.csv: too few": ("text,label\none,cat\ntwo,dog\n", "d: 'cat' has 1 texts"),
    "e.csv: empty": ("", "no labelled text"),
    "f.csv: empty label": ("text,label\none,\n", "no text or number in its field 'label'"),
    "g.jsonl: no JSON": ('{"text": "one", "label": 1}\n{"text"', "Line 2 of"),
    "h.jsonl: no object": ("[1, 2]\n", "no JSON object"),
    "i.txt: no table": ("one cat", "ends in .csv"),
    "j.csv: two columns": ("text,text\na,b\n", "two columns of one name"),
    "k.csv: bytes": (b"text,label\n\xff,1\n", "not UTF-8"),
    "l.csv: numbers": (
        "text,label\n" + "".join(f"t{i},{i}\n" for i in range(1100)),
        "1100 classes",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_refused_in_one_sentence_before_the_model_is_loaded(
    case, run, tmp_path, capsys
):
    content, sentence = BAD[case]
    path = tmp_path / case.split(":")[0]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert tasks(run.path, "--probe", path) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("saelab tasks:")
    assert sentence in said
    assert not (run.path / "evaluation" / "task_probing.json").exists()


def test_what_cannot_be_measured_says_why(run, tmp_path, capsys, monkeypatch):
    two = table(tmp_path / "two.csv", [row for row in sentences(400) if row["label"] != "mat"])
    monkeypatch.setitem(sys.modules, "sae_probes", None)
    for arguments, sentence in (
        ((), "holds no task yet"),
        (("--csv", tmp_path), "--csv"),
        (("--length", 9), "--length belongs to a task"),
        (("--probe", "missing.csv"), "does not exist"),
        (("--probe", "sae-probes"), "not installed"),
        (("--probe", two, "--first", 3), "--first belongs to"),
        (("--tpp", two, *SIZES), "has 2 classes"),
        (("--scr", two, "--second-label-field", "other"), "no field 'other'"),
        (("--letters",), "--n-examples 0"),
        (("--letters", "--n-examples", 0), "No letter begins 5 words"),
        (("--letters", "--rules", "sae-probes"), "--letters has no rules of sae-probes"),
        (("--ravel", tmp_path, "--rules", "saebench"), "--rules belongs to --probe"),
        (("--saebench", tmp_path / "bench"), "nothing for --saebench"),
        (("--probe", two, "--n-pairs", 50), "--n-pairs belongs to --ravel"),
        (("--scr", "a+b", "--second-label-field", "x"), "belongs to --scr FILE"),
        (("--ravel", tmp_path), "no file ravel_KIND"),
        (("--ravel", tmp_path / "nowhere"), "nowhere is not there; --ravel is the folder"),
        (("--unlearn", two), "--unlearn also needs --keep"),
    ):
        assert tasks(run.path, *arguments) == 2, arguments
        assert sentence in capsys.readouterr().err.strip().splitlines()[-1]


def test_means_say_which_tasks_of_earlier_calls_are_in_them(run, tmp_path, capsys):
    first, second = (table(tmp_path / f"{n}.csv", sentences(400, n)) for n in (1, 2))
    assert tasks(run.path, "--tpp", first, *SIZES) == 0
    assert "earlier calls" not in capsys.readouterr().err
    assert tasks(run.path, "--tpp", second, *SIZES) == 0
    assert "1 tasks of earlier calls, which are shown and" in capsys.readouterr().err
    table(second, sentences(400, 3))
    assert tasks(run.path, "--tpp", first, second, *SIZES) == 0
    assert "2 was measured before, on other data or settings" in capsys.readouterr().err


def test_two_files_of_one_name_are_refused(run, tmp_path, capsys):
    files = [tmp_path / place / "own.jsonl" for place in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text("\n".join(json.dumps(row) for row in sentences(40)))
    assert tasks(run.path, "--probe", *files) == 2
    assert "names two data sets 'own'" in capsys.readouterr().err

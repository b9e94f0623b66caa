"""`saelab explain`: by counting, and by a file that another system answers."""

import json
import shutil

import pytest
from analysis.explain.conftest import contents
from apps.conftest import DEAD

from saelab.analysis.explain.records import TEXTS, explanation_sets, name_of, read_set
from saelab.analysis.records import Features
from saelab.analysis.verify_run import verify_run
from saelab.cli import main
from saelab.config import UsageError
from saelab.formats.json_file import read_sealed_json, write_sealed_json


def explain(run, *words):
    return main(["explain", str(run.path), *map(str, words)])


def answered(questions, answers, *, only=None):
    """A file that answers `questions` (those in `only`) by "latent N"."""
    lines = [json.loads(line) for line in questions.read_text().splitlines()]
    latents = [line["custom_id"].split("/")[1] for line in lines]
    kept = [
        json.dumps({"custom_id": line["custom_id"], "answer": f"Explanation: latent {latent}"})
        for line, latent in zip(lines, latents, strict=True)
        if only is None or int(latent) in only
    ]
    answers.write_text("\n".join(kept))
    return answers


def test_counting_says_what_features_say_and_asks_nobody(run, capsys):
    assert explain(run, "--llm", "tokens") == 0
    (found,) = explanation_sets(run.path)
    features = Features(run.path)
    assert {n: e.text for n, e in found.by_latent.items()} == {
        n: features.fires_on(n) for n in range(DEAD)
    }
    assert (found.kind, found.prompt, found.requests) == ("tokens", "counting/1", 0)
    assert capsys.readouterr().out.splitlines()[-1] == str(found.path)
    assert verify_run(run.path).damages == []


def test_questions_go_out_and_answers_come_in_part_by_part(run, tmp_path):
    model = ["--llm", "some/Model-1", "--first", "6"]
    before = contents(run.path)
    assert explain(run, *model, "--export-prompts", tmp_path / "q.jsonl") == 0
    assert contents(run.path) == before
    some = answered(tmp_path / "q.jsonl", tmp_path / "some.jsonl", only=range(4))
    every = answered(tmp_path / "q.jsonl", tmp_path / "all.jsonl")
    assert explain(run, *model, "--import", some) == 1
    (found,) = explanation_sets(run.path)
    assert sorted(found.by_latent) == list(range(4))
    assert verify_run(run.path).damages == []
    assert explain(run, *model, "--import", every) == 0
    (found,) = explanation_sets(run.path)
    assert {n: e.text for n, e in found.by_latent.items()} == {n: f"latent {n}" for n in range(6)}
    assert (found.name, found.model, found.kind) == ("model-1", "some/Model-1", "file")
    assert [path.name for path in found.path.iterdir()] == [TEXTS]


def test_several_explanations_of_a_latent_stand_beside_each_other(run, tmp_path):
    for name in ("one", "two"):
        words = ["--llm", "m", "--name", name, "--latents", "3", "4"]
        explain(run, *words, "--export-prompts", tmp_path / "q.jsonl")
        answers = answered(tmp_path / "q.jsonl", tmp_path / "a.jsonl")
        assert explain(run, *words, "--import", answers) == 0
    assert [sorted(found.by_latent) for found in explanation_sets(run.path)] == [[3, 4]] * 2


@pytest.mark.parametrize(
    ("words", "said"),
    [([], "no --llm"), (["--llm", "m"], "no key in the environment variable OPENAI_API_KEY"),
     (["--llm", "tokens", "--import", "x"], "No model is asked"),
     (["--llm", "tokens", "--max-requests", "5", "--base-url", "http://x/v1"],
      "--llm tokens asks no model; leave --base-url, --max-requests out"),
     (["--score", "m", "--judge", "words", "--timeout", "9"], "--judge words asks no model"),
     (["--llm", "tokens", "--name", ""], "--name is empty"), (["--llm", ""], "--llm is empty"),
     (["--score", "m", "--judge", " "], "empty --judge"),
     (["--llm", "m", "--import", "x", "--export-prompts", "y"], "give one"),
     (["--llm", "m", "--import", "missing"], "missing does not exist"),
     (["--llm", "m", "--import", __file__], "is not whole JSON"),
     (["--llm", "./gone"], "./gone is not there"),
     (["--score", "m", "--judge", "/gone/judge"], "/gone/judge is not there"),
     (["--llm", "tokens", "--latents", "99"], "There is no latent 99"),
     (["--llm", "tokens", "--name", "../x"], "is no name"),
     (["--llm", "m", "--latents", str(DEAD), "--export-prompts", "y"], "nothing to ask"),
     (["--llm", "m", "--judge", "j"], "--judge without"), (["--score", "m"], "need a --judge"),
     (["--score", "../x", "--judge", "words"], "explain: '../x' is no name"),
     (["--score", "m", "--judge", "words"], "explanations.json does not exist"),
     (["--calibrate", "x", "--judge", "words"], "or --calibrate without one"),
     (["--llm", "m", "--export-prompts", "pyproject.toml/y"], "is no directory")],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_one_sentence(run, capsys, words, said, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    before = contents(run.path)
    assert explain(run, *words) == 2
    assert said in capsys.readouterr().err
    assert contents(run.path) == before


def test_a_set_has_one_model_and_the_weights_that_it_was_made_with(run, capsys):
    explain(run, "--llm", "tokens")
    assert explain(run, "--llm", "m", "--name", "tokens", "--export-prompts", "y") == 2
    assert "give another --name" in capsys.readouterr().err
    shutil.copy(run.path / "config.json", run.weights)
    assert explain(run, "--llm", "tokens") == 2
    assert "other weights" in capsys.readouterr().err


def test_a_damaged_set_is_refused(run):
    explain(run, "--llm", "tokens")
    path = next(explanation_sets(run.path)).path
    whole = read_sealed_json(path / TEXTS)
    for name, value in [
        ("latents", [1]), ("texts", 3), ("texts", [5] * DEAD), ("made", None), ("model", "x" * 999),
        ("at", [None] * DEAD), ("prompt_tokens", [-1] * DEAD), ("format", 1), ("cost", []),
    ]:  # fmt: skip
        write_sealed_json(path / TEXTS, whole | {name: value})
        with pytest.raises(UsageError):
            read_set(path)
        assert [damage.file for damage in verify_run(run.path).damages]


def test_a_set_is_named_after_its_model():
    assert name_of("meta-llama/Llama-3.1 8B/") == "llama-3.1-8b"
    assert name_of("/") == "model"

"""Steering judged as AxBench does: the arithmetic, the factor's choice, and a whole judging."""

import json

import pytest
import torch
from clients.scripted import KEY, Script, completion, serving

from saelab.analysis.explain.axbench import (
    SteeredAnswer,
    SteeringTask,
    harmonic,
    judged_steering,
    rating,
    read_task,
    write_task,
)
from saelab.analysis.explain.axbench_concepts import read_concepts, read_instructions
from saelab.analysis.explain.axbench_texts import _probe
from saelab.analysis.scoreboard import scoreboard
from saelab.cli import main
from saelab.clients.ledger import Ledger
from saelab.clients.question import Answer
from saelab.config import UsageError

METHODS = {"latent", "difference in means", "probe", "ReFT-r1", "random direction", "no steering"}


def test_the_harmonic_mean_is_zero_if_a_rating_is():
    assert harmonic([2, 2, 2]) == 2
    assert harmonic([1, 2, 2]) == pytest.approx(1.5)
    assert harmonic([0, 2, 2]) == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("2", 2),
        ("Rating: [[1]]", 1),
        ("0.", 0),
        ("I see 2 of 10, so 1", 1),
        ("12", None),
        ("", None),
    ],
)
def test_a_rating_is_a_digit_that_stands_alone(text, told):
    assert rating(Answer(text)) == told


def test_the_factor_is_chosen_on_other_instructions_than_it_is_reported_on(tmp_path):
    """Factor 1 is best on even instructions, factor 2 on odd ones, where it is not chosen."""
    task = SteeringTask(["c"], ["a", "b", "c", "d"], [0])
    task.answers = [
        SteeredAnswer(0, "m", factor, i, f"{factor} {i}") for factor in (1.0, 2.0) for i in range(4)
    ]
    ledger = Ledger(tmp_path / "l.jsonl")
    good = {(1.0, 0), (1.0, 2), (2.0, 1), (2.0, 3), (1.0, 1)}
    for (i, _), question in task.questions().items():
        answer = task.answers[i]
        said = "2" if (answer.factor, answer.instruction) in good else "1"
        ledger.answers[question.key] = Answer(said)
    found = judged_steering("j", task, ledger)
    assert found.factors == {"m": [1.0]}
    assert found.by_method["m"] == {"score": [1.5], "concept": [1.5], "instruct": [1.5],
                                    "fluency": [1.5]}  # fmt: skip
    assert found.n_unread == 0
    ledger.answers.clear()
    assert judged_steering("j", task, ledger).by_method["m"]["score"] == [0.0]
    write_task(tmp_path / "t.json", task)
    assert read_task(tmp_path / "t.json") == task


def test_the_probe_finds_the_planted_direction():
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 400, 8, generator=draw)
    way = torch.zeros(8)
    way[3] = 1.5
    found = _probe(noise[0] + way, noise[1] - way)
    assert float(found[3] / found.norm()) > 0.9


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[]", "needs `concept`"),
        ({"concept": "x", "positive": ["a"]}, "needs `concept`"),
        ({"concept": "x", "positive": ["a"], "negative": []}, "no texts"),
        ({"concept": "x", "positive": [1], "negative": ["b"]}, "empty text"),
        ({"concept": "x", "positive": ["a"], "negative": ["b"], "latent": -1}, "names no latent"),
    ],
)
def test_what_is_no_concept_is_told(line, told, tmp_path):
    (tmp_path / "c.jsonl").write_text(line if isinstance(line, str) else json.dumps(line))
    with pytest.raises(UsageError, match=told):
        read_concepts(tmp_path / "c.jsonl")
    (tmp_path / "i").write_text("one\n\n")
    with pytest.raises(UsageError, match="two at least"):
        read_instructions(tmp_path / "i")


@pytest.mark.unchecked
def test_every_method_is_judged_and_paid_for_once(steered_run, tmp_path, monkeypatch, capsys):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    concept = {"concept": "the cat", "positive": ["the cat sat", "a cat ran"],
               "negative": ["the dog sat", "a dog ran"]}  # fmt: skip
    (tmp_path / "c.jsonl").write_text(json.dumps(concept))
    (tmp_path / "i.txt").write_text("the dog\na cat\n")

    def reply(number, body):
        return 200, completion(str(number % 3)), {}

    with serving(Script(reply)) as script:
        words = ["explain", str(steered_run.path), "--axbench", str(tmp_path / "c.jsonl"),
                 "--judge", "m", "--base-url", script.url, "--factors", "0.5", "2",
                 "--instructions", str(tmp_path / "i.txt"), "--answer-tokens", "3"]  # fmt: skip
        assert main(words) == 0
        n = script.asked.total()
        assert main(words) == 0
        assert script.asked.total() == n
    values = steered_run.evaluation("axbench_m")
    assert values is not None
    assert values["methods"].keys() >= METHODS
    assert 0 <= values["methods"]["latent"]["score"]["mean"] <= 2
    board = scoreboard({"run": steered_run.path})
    assert board.runs["run"]["axbench_m.methods.latent.score"].low is not None
    assert "harmonic mean of three ratings" in capsys.readouterr().out
    assert main([*words[:4], "--judge", "words"]) == 2
    assert main([*words[:4], "--judge", "m", "--score", "x"]) == 2

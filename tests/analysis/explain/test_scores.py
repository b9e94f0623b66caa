"""`saelab explain --score` and `--calibrate`: who knows is believed, who guesses is not."""

import json
from collections import defaultdict

import pytest

from saelab.analysis.explain.calibrate import KINDS, calibration, calibration_questions, cases
from saelab.analysis.explain.calibrate_output import output_cases
from saelab.analysis.explain.records import explanation_sets
from saelab.analysis.explain.scores import CONTROLS, OWN, read_scores
from saelab.analysis.verify_run import verify_run
from saelab.cli import main
from saelab.clients.ledger import Ledger
from saelab.clients.question import Answer
from saelab.config import UsageError
from saelab.formats.json_file import read_sealed_json, write_sealed_json


def explain(run, *words):
    return main(["explain", str(run.path), *map(str, words)])


@pytest.fixture
def told(run):
    """The run, explained by token statistics."""
    explain(run, "--llm", "tokens", "--latents", "9", "10", "11", "12")
    return run


def test_counting_is_scored_by_words_beside_controls(told, capsys):
    assert explain(told, "--score", "tokens", "--judge", "words", "--controls", "3") == 0
    (texts,) = explanation_sets(told.path)
    found = read_scores(texts.path / "scores_words.json")
    assert sorted(found.by_source) == sorted([OWN, *CONTROLS])
    assert len(found.by_source[OWN]) == 4
    assert len(found.by_source["empty"]) == 3
    means = {source: each["score"][0] for source, each in found.summary().items()}
    # Latent i fires on token i alone, and counting says so; nothing says nothing.
    assert means[OWN] == 1 > 0.6 > means["random"]
    assert means["empty"] == 0.5
    assert means["tokens"] == pytest.approx(means[OWN], abs=0.1)
    assert "its own" in capsys.readouterr().out
    assert verify_run(told.path).damages == []


def test_another_system_judges_through_files(told, tmp_path, capsys):
    words = ["--score", "tokens", "--judge", "some-judge", "--controls", "0"]
    assert explain(told, *words, "--export-prompts", tmp_path / "q.jsonl") == 0
    lines = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    answers = [{"custom_id": line["custom_id"], "answer": "yes"} for line in lines]
    half = answers[: len(answers) // 2]
    for some, code in ((half, 1), (answers, 0)):
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, some)))
        assert explain(told, *words, "--import", tmp_path / "a.jsonl") == code
    (texts,) = explanation_sets(told.path)
    found = read_scores(texts.path / "scores_some-judge.json")
    assert {found.score(latent) for latent in range(9, 13)} == {0.5}
    assert sorted(path.name for path in texts.path.iterdir()) == [
        "explanations.json",
        "scores_some-judge.json",
    ]
    # What was paid for is not replaced by the scores of fewer latents.
    scores = (texts.path / "scores_some-judge.json").read_bytes()
    assert explain(told, *words, "--latents", "9", "--export-prompts", tmp_path / "fewer") == 2
    assert "has scores of 3 latents that are not chosen now, e.g. 10" in capsys.readouterr().err
    more = [*words, "--examples", "6", "--export-prompts", tmp_path / "fewer"]
    assert explain(told, *more) == 2
    assert "give --examples 5" in capsys.readouterr().err
    assert (texts.path / "scores_some-judge.json").read_bytes() == scores


def test_damaged_scores_are_refused(told):
    explain(told, "--score", "tokens", "--judge", "words", "--controls", "0")
    (texts,) = explanation_sets(told.path)
    path = texts.path / "scores_words.json"
    whole = read_sealed_json(path)
    own = whole["sources"][OWN]
    for change in (
        {"format": 1}, {"judge": 3}, {"sources": []}, {"cost": {}}, {"n_unread": -1},
        *({"sources": {OWN: own | part}} for part in (
            {"latents": ["a"]}, {"detection": [2.0] * 4}, {"fuzzing_auc": ["x"] * 4},
            {"detection_n": []}, {"latents": [0]},
        )),
    ):  # fmt: skip
        write_sealed_json(path, whole | change)
        with pytest.raises(UsageError):
            read_scores(path)
        assert verify_run(told.path).damages


@pytest.fixture(scope="module")
def found():
    """Cases of some features of the tiny model's language."""
    return cases(12, 4)


def test_who_knows_accepts_the_true_description_alone(found, tmp_path):
    ledger = Ledger(tmp_path / "asked.jsonl")
    questions = calibration_questions(found)
    said = [
        (questions[case.feature, kind, i].key, Answer("yes" if chance else "no"))
        for case in found
        for kind in case.texts
        for i, chance in enumerate(case.ideal[kind])
    ]
    ledger.add(said)
    result = calibration("ideal", found, ledger)
    assert set(result.scores) == set(KINDS)
    assert result.scores == result.ideal
    assert set(result.scores["true"]) == {1.0}
    assert result.accepted("true") == 1.0
    assert result.accepted("false") == 0.0
    means = {kind: one["score"][0] for kind, one in result.summary().items()}
    assert means["false"] < 0.6
    assert max(means["too broad"], means["too narrow"]) < 0.9


def test_who_always_says_yes_accepts_nothing(found, tmp_path):
    ledger = Ledger(tmp_path / "asked.jsonl")
    ledger.add((q.key, Answer("Yes")) for q in calibration_questions(found).values())
    result = calibration("yes", found, ledger)
    assert {score for scores in result.scores.values() for score in scores} == {0.5}
    assert all(result.accepted(kind) == 0 for kind in result.scores)


def test_cases_are_the_same_each_time_and_their_descriptions_what_they_are_called(found):
    assert [case.trials for case in cases(12, 4)] == [case.trials for case in found]
    kinds = defaultdict(int)
    for case in found:
        for kind in case.texts:
            kinds[kind] += 1
        truth = [float(trial.truth) for trial in case.trials]
        assert case.ideal["true"] == truth
        assert sum(truth) == 8
    assert kinds["true"] == 12
    assert min(kinds[kind] for kind in KINDS) >= 3


def test_the_true_description_of_an_effect_says_what_was_made_likely():
    found = output_cases(6, 2)
    result = calibration("words", found, None)
    means = {kind: one["ideal"][0] for kind, one in result.summary().items()}
    assert means["true"] > 0.9
    assert means["false"] < 0.6
    assert max(means["too broad"], means["too narrow"]) < 0.85
    for case in found:
        assert [trial.truth for trial in case.trials] == [True] * 2 + [False] * 2
        assert case.texts["true"].startswith("The model writes ")


def test_words_are_calibrated_on_the_command_line(tmp_path, capsys):
    words = ["explain", "--calibrate", str(tmp_path / "judges"), "--judge", "words", "--first", "3"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "too narrow" in out or "too broad" in out
    values = read_sealed_json(tmp_path / "judges" / "calibration_words.json")
    assert values["kinds"]["true"]["n"] == 3
    assert main([*words[:-1], "2", "--side", "output"]) == 0
    values = read_sealed_json(tmp_path / "judges" / "calibration_output_words.json")
    assert values["kinds"]["true"]["n"] == 2
    assert main([*words[:-1], "300"]) == 2
    assert "the language has" in capsys.readouterr().err

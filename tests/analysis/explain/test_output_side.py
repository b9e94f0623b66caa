"""What a latent does: texts written with it turned up, explained and judged."""

import json

import pytest

from saelab.analysis.explain import steer_texts
from saelab.analysis.explain.judging import by_words, merits, score_of
from saelab.analysis.explain.output_side import output_question, output_trials
from saelab.analysis.explain.records import read_set
from saelab.analysis.explain.scores import OWN, read_scores
from saelab.analysis.explain.steer_texts import SAMPLING
from saelab.analysis.explain.steered import SteeredTexts, read_steered, write_steered
from saelab.analysis.records import Features
from saelab.analysis.verify_run import verify_run
from saelab.cli import main
from saelab.config import UsageError
from saelab.formats.json_file import read_sealed_json, write_sealed_json

N = 12


@pytest.fixture
def steered():
    """Latent i makes the model write word{i}."""
    prompts = [f"opening {i}" for i in range(N)]
    texts = {i: (2.0, 1.5, [f"word{i} and {j}" for j in range(N)]) for i in range(4)}
    return SteeredTexts("ab" * 32, {}, prompts, [f"plain {j}" for j in range(N)], texts)


def test_a_true_description_is_told_from_a_false_one_on_unseen_openings(steered):
    trials = output_trials(steered, [0, 1, 2, 3, 9], 5)
    assert sorted(trials) == [0, 1, 2, 3]
    for latent, found in trials.items():
        assert sum(trial.truth for trial in found) == 5
        assert all((f"word{latent} " in trial.text) == trial.truth for trial in found)
        own = merits(found, [by_words(f"raises: “word{latent}”", trial) for trial in found])
        false = merits(found, [by_words("raises: “nothing”", trial) for trial in found])
        assert (score_of(own), score_of(false)) == (1.0, 0.5)
        openings = {trial.text.partition("]")[0].removeprefix("[") for trial in found}
        shown = {prompt for prompt, _, _ in steered.shown(latent)}
        assert openings.isdisjoint(shown)


def test_too_few_texts_are_told(steered):
    with pytest.raises(UsageError, match="at most 6 texts"):
        output_trials(steered, [0, 1], 7)
    with pytest.raises(UsageError, match="take more"):
        output_trials(steered, [0], 2)


def test_damaged_texts_are_refused(steered, tmp_path):
    path = tmp_path / "steered.json"
    write_steered(path, steered)
    assert read_steered(path) == steered
    whole = read_sealed_json(path)
    for change in ({"format": 1}, {"made": 1}, {"plain": ["x"]}, {"latents": [-1, 1, 2, 3]},
                   {"texts": [[1] * N] * 4}, {"kl": ["x"] * 4}, {"strengths": []}):  # fmt: skip
        write_sealed_json(path, whole | change)
        with pytest.raises(UsageError, match="damaged"):
            read_steered(path)


def test_both_sides_of_a_run_are_explained_and_scored_apart(
    steered_run, capsys, monkeypatch, tmp_path
):
    run = steered_run
    monkeypatch.setattr(steer_texts, "SAMPLING", SAMPLING.model_copy(update={"n_tokens": 3}))
    fired = [n for n in range(32) if Features(run.path).file["latent/n_fired"][n]][:3]
    some = ["--latents", *map(str, fired)]
    explain = ["explain", str(run.path)]
    assert main([*explain, "--llm", "tokens", "--side", "output", *some]) == 0
    texts = read_set(run.path / "explanations" / "tokens-output")
    assert (texts.side, texts.prompt) == ("output", "raised/1")
    score = [*explain, "--score", "tokens-output", "--judge", "words", "--examples", "3", *some]
    assert main(score) == 0
    found = read_scores(texts.path / "scores_words.json")
    assert {test for one in found.by_source[OWN].values() for test in one} == {"steering"}
    kept = read_steered(run.path / "explanations" / "steered.json")
    assert sorted(kept.by_latent) == fired
    # The texts of the judge's questions are not written anew.
    monkeypatch.setattr(steer_texts, "load_recorded_model", None)
    assert main(score) == 0
    file = tmp_path / "q.jsonl"
    assert (
        main([*explain, "--llm", "m", "--side", "output", *some, "--export-prompts", str(file)])
        == 0
    )
    asked = json.loads(file.read_text().splitlines()[0])["body"]["messages"][1]["content"]
    assert asked.startswith("Opening: ")
    assert kept.prompts[1] not in asked
    record = Features(run.path)[fired[0]]
    assert output_question(record, kept).user == asked
    assert verify_run(run.path).damages == []
    # An input side may not continue a set of the output side.
    assert main([*explain, "--llm", "tokens", "--name", "tokens-output", *some]) == 2
    assert "with the side 'output'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--llm", "m", "--export-prompts", "f", "--timeout", "3"],
            "--export-prompts asks no model",
        ),
        (["--llm", "m", "--import", "f", "--max-requests", "3"], "--import asks no model"),
        (["--llm", "m", "--examples", "3"], "--examples without --score"),
        (["--llm", "m", "--model", "x"], "--model without --llm with --side output"),
        (["--score", "x", "--judge", "m", "--side", "output"], "--side without --llm"),
    ],
)
def test_options_without_an_effect_are_told(
    steered_run, words, told, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["explain", str(steered_run.path), *words]) == 2
    assert told in capsys.readouterr().err

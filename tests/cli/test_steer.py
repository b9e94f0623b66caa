"""`saelab steer` as a user meets it."""

import json
import shutil

import pytest
from conftest import SENTENCE

from saelab.analysis.features import FeatureOptions, collect_features
from saelab.cli import main
from saelab.training.run import Run


@pytest.fixture(scope="module")
def run(small_run, random_lm, tmp_path_factory):
    copy = tmp_path_factory.mktemp("steer") / "topk"
    run = Run(shutil.copytree(small_run.path, copy))
    collect_features(run, random_lm, FeatureOptions(n_tokens=300, n_examples=12, reach=3))
    return run


def steer(*arguments: object) -> int:
    return main(["steer", *map(str, arguments), "--device", "cpu"])


def test_scores_of_all_latents_are_written_and_the_best_printed(run, capsys):
    assert steer(run.path, "--all", "--prompt", SENTENCE, "--top", 3) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == str(run.path / "steering.h5")
    assert "promises" in out
    assert "Of 32 rows" in out.replace("\n", " ")
    assert steer(run.path, "--all", "--prompt", SENTENCE, "--top", 3, "--json") == 0
    values = json.loads(capsys.readouterr().out)
    outputs = [record["output"] for record in values["best"]]
    assert outputs == sorted(outputs, reverse=True)
    assert len(outputs) == 3
    assert values["summary"]["n_rows"] == 32


def test_steered_text_stands_beside_the_plain_one(run, capsys):
    common = (run.path, "--latents", 3, 9, "--prompt", "the cat", "--n-tokens", 4)
    assert steer(*common, "--strength", 8) == 0
    out = capsys.readouterr().out
    assert "steered" in out
    assert "1 of 1 activations" in out.replace("\n", " ")
    assert steer(*common, "--strength", 0, "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["change"]["latents"] == [3, 9]
    assert values["plain"] == values["steered"]


def test_a_dose_has_a_row_a_strength(run, capsys):
    common = (run.path, "--latents", 3, "--prompt", "the cat", "--dose", "--target", "dog")
    assert steer(*common, "--n-tokens", 3, "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["target"] == "dog"
    assert len(values["kl"]) == len(values["strengths"]) == 13
    assert steer(*common, "--n-tokens", 3, "--strength", -1) == 0
    assert "-20" in capsys.readouterr().out


def test_success_is_measured_and_saved(run, capsys):
    assert steer(run.path, "--all", "--prompt", SENTENCE, "--json") == 0
    capsys.readouterr()
    assert steer(run.path, "--success", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(run.path / "evaluation" / "steering_success.json")
    values = json.loads((run.path / "evaluation" / "steering_success.json").read_text())
    assert len(values["latents"]) == 1
    everything, *filtered = values["filters"]
    assert everything["score"] == "none"
    # The factor stands in the table with its interval, and a filter with what it keeps of noise.
    assert "1.00 [1.00, 1.00]" in next(line for line in lines if line.lstrip().startswith("none"))
    for row in filtered:
        assert (row["chance"] is None) == (row["score"] == "input")
        assert row["low"] <= row["ratio"] <= row["high"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Got 0 of --latents I ..., --all, --concepts and --success N; give one."),
        (("--all", "--latents", 3), "Got 2 of"),
        (("--latents", 99, "--prompt", "the cat"), "There is no latent 99"),
        (("--latents", 3, "--prompt", "the zebra"), "does not know “zebra”"),
        (("--all",), "does not know “In”, “my”, “experience,”"),
        (("--latents", 3, "--prompt", "the cat", "--positions", 7), "Position 7 lies behind"),
    ],
)
def test_mistakes_exit_with_2_and_one_sentence(run, capsys, arguments, message):
    assert steer(run.path, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error


def test_concepts_of_another_model_are_refused(run, capsys):
    assert steer(run.path, "--all", "--prompt", SENTENCE, "--json") == 0
    assert steer(run.path, "--concepts") == 2
    assert "does not speak it" in capsys.readouterr().err


def test_scores_and_concepts_name_what_must_run_before(small_run, tmp_path, capsys):
    bare = shutil.copytree(small_run.path, tmp_path / "bare", ignore=shutil.ignore_patterns("*.h5"))
    assert steer(bare, "--all", "--prompt", SENTENCE) == 2
    assert "run `saelab features` first" in capsys.readouterr().err
    assert steer(bare, "--concepts") == 2
    assert "run `saelab steer RUN --all` first" in capsys.readouterr().err

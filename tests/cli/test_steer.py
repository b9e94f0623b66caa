"""`saelab steer` as a user meets it."""

import json
import shutil

import pytest
from conftest import SENTENCE

from saelab.analysis.features import FeatureOptions, collect_features
from saelab.analysis.steering.generate import Comparison, Continuation, GeneratedToken
from saelab.analysis.steering.interventions import Intervention
from saelab.analysis.steering.self_test import Effect
from saelab.cli import main
from saelab.cli.steer_tables import print_comparison
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
    assert len(values["directions"]) == 1
    assert any(line.lstrip().startswith("random directions") for line in lines)
    assert everything["score"] == "none"
    # The factor stands in the table with its interval, and a filter with what it keeps of noise.
    assert "1.00 [1.00, 1.00]" in next(line for line in lines if line.lstrip().startswith("none"))
    for row in filtered:
        assert (row["chance"] is None) == (row["score"] != "output")
        assert row["low"] <= row["ratio"] <= row["high"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Got 0 of --latents I ..., --all, --concepts and --success N; give one."),
        (("--all", "--latents", 3), "Got 2 of"),
        (("--latents", 99, "--prompt", "the cat"), "There is no latent 99"),
        (("--latents", 3, "--prompt", "the zebra"), "does not know “zebra”"),
        (("--latents", 3, "--chat"), "Got --chat without --prompt"),
        (("--concepts", "--prompt", "the cat"), "have prompts of their own"),
        (("--all",), "does not know “In”, “my”, “experience,”"),
        (("--latents", 3, "--prompt", "the cat", "--positions", 7), "Position 7 lies behind"),
    ],
)
def test_mistakes_exit_with_2_and_one_sentence(run, capsys, arguments, message):
    assert steer(run.path, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error


def test_special_tokens_are_read_and_a_second_bos_is_told(run, capsys):
    common = (run.path, "--latents", 3, "--n-tokens", 3, "--json")
    assert steer(*common, "--prompt", "the cat") == 0
    plain = json.loads(capsys.readouterr().out)
    assert steer(*common, "--prompt", "<bos><bos> the cat") == 0
    read = capsys.readouterr()
    assert json.loads(read.out)["steered"] == plain["steered"]
    assert read.err.count("begins with <bos> 2 times") == 1


def test_a_chat_prompt_goes_through_the_models_template(run, checkpoint, tmp_path, capsys):
    model = shutil.copytree(checkpoint, tmp_path / "chat")
    (model / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}the {{ m.content }} "
        "{% endfor %}{% if add_generation_prompt %}sat{% endif %}"
    )
    common = (run.path, "--latents", 3, "--n-tokens", 3, "--json")
    assert steer(*common, "--prompt", "the cat sat") == 0
    plain = json.loads(capsys.readouterr().out)
    for prompt in ("cat", '[{"role": "user", "content": "cat"}]'):
        assert steer(*common, "--chat", "--prompt", prompt, "--model", model) == 0
        read = capsys.readouterr()
        assert json.loads(read.out)["steered"] == plain["steered"]
        assert "Note" not in read.err
    assert steer(*common, "--chat", "--prompt", "cat") == 2
    assert "has no chat template" in capsys.readouterr().err
    system = '[{"role": "system", "content": "cat"}]'
    assert steer(*common, "--chat", "--prompt", system, "--model", model) == 2
    assert capsys.readouterr().err.endswith("refuses these messages: System role not supported.\n")


def test_a_token_that_breaks_lines_stays_in_its_row(capsys):
    tokens = [GeneratedToken(text, -1.0, -1.0, 0.0) for text in ("\n\n", " [red]x", "שלם")]
    said = Continuation(tokens, [token.text for token in tokens])
    change = Intervention(latents=(3,))
    print_comparison(Comparison("a\nb", change, Effect(1, 1, 0.5), [said], [said]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a↵b ..."
    row = next(line for line in lines if "↵↵" in line)
    assert row.split() == ["↵↵", "-1.00", "↵↵", "-1.00", "-1.00", "0.00"]
    assert any("[red]x" in line for line in lines)
    assert any("\u2068שלם\u2069" in line for line in lines)


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

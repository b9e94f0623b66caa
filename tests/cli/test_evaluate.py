"""`saelab evaluate` as a user meets it."""

import json
import shutil

import pytest
import torch

from saelab.activations.arrays import write_arrays
from saelab.cli import main
from saelab.cli.evaluate import print_evaluation
from saelab.evaluation.absorption import PartAbsorption, Rate, TaskAbsorption
from saelab.evaluation.absorption_tasks import Absorption, KindMeans
from saelab.evaluation.evaluate import evaluate
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.probe import ProbeScore
from saelab.evaluation.probing import LabelProbing, SparseProbing
from saelab.training.config import TrainConfig
from saelab.training.loop import train
from saelab.training.run import Run

FEW = ("--reach", 3, "--n-tokens", 60, "--n-ablated-tokens", 3, "--device", "cpu")


@pytest.fixture(scope="module")
def run(small_run, tmp_path_factory):
    return Run(shutil.copytree(small_run.path, tmp_path_factory.mktemp("evaluate") / "topk"))


def command(*arguments: object) -> int:
    return main(["evaluate", *map(str, arguments)])


def words(text: str) -> str:
    return " ".join(text.split())


def test_every_option_is_explained(capsys):
    with pytest.raises(SystemExit) as stopped:
        command("--help")
    assert stopped.value.code == 0
    help_text = capsys.readouterr().out
    for name, field in EvaluateOptions.model_fields.items():
        assert f"--{name.replace('_', '-')}" in help_text
        assert field.description
    assert "(default: full)" in words(help_text)


def test_the_full_suite_is_printed_in_groups_with_what_is_missing(run, capsys):
    assert command(run.path, *FEW) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == str(run.path / "evaluation")
    groups = (
        "How faithful is it?",
        "How are the latents used?",
        "How short is the description?",
        "What do the latents do to the predictions?",
        "Not measured",
    )
    places = [out.index(group) for group in groups]
    assert places == sorted(places)
    assert "CE recovered, mean" in out
    missing = words(out[places[-1] :])
    for name in ("recovery", "probing", "absorption"):
        assert f"{name} The text has no ground-truth labels." in missing
    assert "uniformity" in missing  # in the line of seconds


def test_json_is_complete_and_equals_the_files(run, capsys):
    assert command(run.path, *FEW, "--json") == 0
    values = json.loads(capsys.readouterr().out)
    summary = run.evaluation("summary")
    assert summary["skipped"] == values["skipped"]
    assert set(summary["files"]) == {
        *("reconstruction", "downstream", "density", "dictionary"),
        *("description_length", "uniformity", "ablation"),
    }
    for name in summary["files"]:
        saved = run.evaluation(name)
        saved.pop("made", None)
        assert saved == values[name]
    assert len(values["density"]["frequency"]) == 32


def test_the_core_alone_can_be_asked_for(run, capsys):
    assert command(run.path, *FEW, "--suite", "core") == 0
    out = capsys.readouterr().out
    assert "How are the latents used?" in out
    assert "How short" not in out
    assert run.evaluation("summary")["made"]["options"]["suite"] == "core"


def test_options_that_make_no_sense_are_refused(run, capsys):
    assert command(run.path, "--n-tokens", 0) == 2
    assert "--n-tokens '0' is not possible" in words(capsys.readouterr().err)


def test_a_run_trained_on_arrays_is_measured_without_a_model(tmp_path, capsys):
    x = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0))
    store = write_arrays(tmp_path / "store", {"x": x})
    sae = {"variant": "abs-topk", "d_sae": 8, "k": 2}
    config = TrainConfig.model_validate(
        {"sae": sae, "activations": store, "site": "x", "n_tokens": 3000, "batch_size": 100}
    )
    path = train(config, out=tmp_path / "run").path
    assert command(path, "--device", "cpu") == 0
    out = words(capsys.readouterr().out)
    assert "FVU" in out
    assert "bits per token" in out
    assert "both signs" in out
    assert "ablation The run was trained on arrays, and this needs a language model." in out
    for given in (("--text", "other.txt"), ("--model", "tiny")):
        assert command(tmp_path / "run", *given) == 2
        assert f"was trained on arrays; leave out {given[0]}." in capsys.readouterr().err


SCORE = ProbeScore(0.5, 0.75)


def labelled(result):
    """The result with the parts that only a labelled text has."""
    from dataclasses import replace

    part = PartAbsorption(0.9, Rate(10, 0.4, 0.1))
    task = TaskAbsorption("hierarchy", "verb", [(3, 1)], 0.8, {"verb_plural": part}, part.rate)
    left_out = {
        "hierarchy: noun (place)": "It is rare.",
        "first letter: a": "The probe's F1 of 0.11 on unseen rows is below 0.6.",
        "first letter: b": "The probe's F1 of 0.12 on unseen rows is below 0.6.",
    }
    absorption = Absorption([task], left_out, {"hierarchy": KindMeans(1, 0.4, 0.1)})
    label = LabelProbing("verb", 0.1, [3], [1], [SCORE] * 3, [SCORE] * 3, SCORE)
    means = {"latents": [0.51, 0.62, 0.73], "channels": [0.1, 0.2, 0.3], "dense": [0.94]}
    probing = SparseProbing(100, [1, 2, 5], [label], [], means, means)
    return replace(result, results=result.results | {"absorption": absorption, "probing": probing})


def test_absorption_that_was_left_out_altogether_is_told_with_its_reasons(run, random_lm, capsys):
    from dataclasses import replace

    left_out = {"first letter: a": "The probe's F1 of 0.11 on unseen rows is below 0.6."}
    result = evaluate(run, random_lm, n_tokens=20)
    print_evaluation(run, replace(result, results={"absorption": Absorption([], left_out, {})}))
    out = words(capsys.readouterr().out)
    assert "absorb general ones" not in out
    assert "first letter The probe's F1 on unseen rows is below 0.6. a" in out


def test_probing_and_absorption_have_tables(run, random_lm, capsys):
    print_evaluation(run, labelled(evaluate(run, random_lm, n_tokens=20)))
    out = words(capsys.readouterr().out)
    assert "the best 5 0.730 0.730 0.300 0.300" in out
    assert "all 0.940 0.940" in out
    assert "verb 0.80 (1) 40.0% 10.0% 10 verb_plural 40% 0.90" in out
    assert "mean of 1 (hierarchy) 40.0% 10.0%" in out
    assert "absorption, hierarchy It is rare. noun (place)" in out
    # Reasons that differ in a figure alone share a line.
    assert "first letter The probe's F1 on unseen rows is below 0.6. a, b" in out

"""A metric in one file and one line: measured or skipped, saved, loaded and printed by itself."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from contributing import METRIC, module_of

from saelab.activations.arrays import write_arrays
from saelab.cli import main
from saelab.config import UsageError
from saelab.evaluation.arrays import evaluate_arrays
from saelab.evaluation.evaluate import evaluate
from saelab.evaluation.inputs import Inputs, language_model, replaceable_site
from saelab.evaluation.measurement import (
    REGISTRY,
    Column,
    Measurement,
    Streamed,
    measurements,
    register_measurement,
)
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.report import not_measured, report
from saelab.evaluation.results import Evaluation, load_evaluation
from saelab.evaluation.rows import Skipped
from saelab.training.config import TrainConfig
from saelab.training.loop import train
from saelab.training.run import Run

FEW = EvaluateOptions(suite="full", n_tokens=60, reach=3, n_ablated_tokens=3, n_uniformity=4)


LARGEST = module_of(METRIC, "largest").LARGEST


def counted(inputs: Inputs) -> Streamed:
    sums = {"n": 0, "error": 0.0}

    def update(batch):
        sums["n"] += len(batch.rows)
        sums["error"] += float((batch.rows.wanted - batch.x_hat).pow(2).sum())

    return Streamed(update, lambda: sums | {"d_sae": inputs.sae.d_sae})


COUNTED = Measurement(
    "counted",
    "A table of its own",
    lambda found: [(str(found["n"]), f"{found['error']:.3f}")],
    stream=counted,
    suite="core",
    columns=(Column("rows"), Column("error")),
    warnings=lambda found: [f"Only {found['n']} rows."],
    left_out=lambda found: [("counted", "the others")],
)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(REGISTRY, "registered", {})
    register_measurement(LARGEST)
    register_measurement(COUNTED)


@pytest.fixture(scope="module")
def array_run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("arrays")
    x = np.random.default_rng(0).normal(size=(3000, 6)).astype(np.float32)
    values = {
        "sae": {"variant": "topk", "d_sae": 8, "k": 2},
        "activations": write_arrays(directory / "store", {"x": x}),
        "site": "x",
        "n_tokens": 2000,
        "batch_size": 100,
    }
    return train(TrainConfig.model_validate(values), out=directory / "run")


@pytest.fixture
def run(small_run, tmp_path):
    return Run(shutil.copytree(small_run.path, tmp_path / "topk"))


def words(text: str) -> str:
    return " ".join(text.split())


def test_it_prints_and_is_in_json_and_in_a_file_of_its_own(run, capsys):
    few = ["--n-tokens", "60", "--reach", "3", "--n-ablated-tokens", "3", "--device", "cpu"]
    assert main(["evaluate", str(run.path), *few]) == 0
    out = words(capsys.readouterr().out)
    found = load_evaluation(run).largest
    assert isinstance(found, LARGEST.result)
    assert 0.25 < found.share <= 1
    assert f"largest {found.share:.1%} of a row's code, mean over {found.n_rows} rows" in out
    assert out.count("How are the latents used?") == 1
    assert "A table of its own rows error" in out
    assert f"Only {found.n_rows} rows." in out
    assert "counted the others" in out.partition("Not measured")[2]
    assert main(["evaluate", str(run.path), *few, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["largest"] == {"share": found.share, "n_rows": found.n_rows}
    assert values["counted"]["d_sae"] == 32


def test_a_stream_sees_every_row_and_the_core_does_without_the_costlier(run, random_lm):
    result = evaluate(run, random_lm, n_tokens=60)
    figures = result.reconstruction
    assert result.counted["n"] == figures["n_tokens"]
    assert result.counted["error"] == pytest.approx(figures["mse_sum"] * figures["n_tokens"])
    assert result.largest is None
    assert "largest" not in result.skipped
    with pytest.raises(AttributeError, match="no measurement 'smallest'"):
        _ = result.smallest


def test_everything_is_measured_or_skipped_by_name_on_runs_of_arrays(array_run, tmp_path):
    needing = replace(LARGEST, name="needing", needs=(language_model,))
    refusing = replace(LARGEST, name="refusing", measure=lambda inputs: Skipped("Not today."))
    for one in (needing, refusing):
        register_measurement(one)
    result = evaluate_arrays(array_run, EvaluateOptions(suite="full"))
    of_rows = {name for name, m in measurements().items() if m.suite != "tasks"}
    assert set(result.results) | set(result.skipped) == of_rows
    assert not set(result.results) & set(result.skipped)
    assert "needs a language model" in result.skipped["needing"]
    assert result.skipped["refusing"] == "Not today."
    assert 0.5 <= result.largest.share <= 1
    assert ("refusing", "Not today.") in not_measured(result).rows
    core = evaluate_arrays(array_run, EvaluateOptions(suite="core"))
    asked = {name for name, m in measurements().items() if m.suite == "core"}
    assert set(core.results) | set(core.skipped) == asked


def test_what_was_saved_is_loaded_and_printed_as_it_was_found(run, random_lm):
    result = evaluate(run, random_lm, FEW)
    loaded = load_evaluation(run)
    assert json.dumps(loaded.values()) == json.dumps(result.values())
    assert report({"topk": loaded}) == report({"topk": result})
    assert not_measured(loaded) == not_measured(result)


def test_files_from_before_rows_were_judged_one_by_one_print(run, random_lm):
    evaluate(run, random_lm, n_tokens=60)
    old = ("fvu", "mse_sum", "cosine", "l0", "dead", "dense", "d_sae", "n_tokens")
    figures = run.evaluation("reconstruction")
    run.save_evaluation("reconstruction", {name: figures[name] for name in old})
    (run.path / "evaluation" / "summary.json").unlink()
    (section, *_) = report({"topk": load_evaluation(run)}, ["reconstruction"])
    assert [row[0] for row in section.rows] == ["FVU", "L0", "dead latents"]


def test_a_damaged_file_is_told_by_name_and_leaves_the_rest(run, random_lm):
    evaluate(run, random_lm, n_tokens=60)
    run.save_evaluation("density", run.evaluation("density") | {"frequency": 3})
    run.save_evaluation("downstream", {"kl": 1.0})
    (run.path / "evaluation" / "dictionary.json").write_text("{")
    found = load_evaluation(run)
    assert {"reconstruction", "counted"} == set(found.results)
    assert "evaluation/density.json of" in found.skipped["density"]
    assert "is damaged: frequency: " in found.skipped["density"]
    assert "is damaged: it has no 'ce_plain'." in found.skipped["downstream"]
    assert "dictionary.json" in found.skipped["dictionary"]
    run.save_evaluation("summary", {"skipped": 3})
    with pytest.raises(UsageError, match=r"summary of .* is damaged: skipped"):
        load_evaluation(run)


def test_several_saes_stand_beside_each_other():
    one, other = ({"n": n, "error": n / 2, "d_sae": 4} for n in (10, 12))
    both = {"a": Evaluation({"counted": one}), "b": Evaluation({"counted": other})}
    keyed = replace(COUNTED, lines=lambda f: [("all", f"{f['n']}"), (f"{f['n']}", "")])
    shared = replace(keyed, columns=(Column("which", shared=True), Column("rows")))
    register_measurement(shared)
    (section,) = report(both)
    assert [column.name for column in section.columns] == ["\nwhich", "a\nrows", "b\nrows"]
    assert section.rows == [("all", "10", "12")]
    assert section.warnings == ["a: Only 10 rows.", "b: Only 12 rows."]
    assert report(both, ["largest"]) == []


def test_a_site_that_the_skip_connection_goes_past_is_named(small_run):
    inputs = Inputs(small_run, small_run.load_sae(), FEW)
    assert replaceable_site(inputs) is None
    past = small_run.config.model_copy(update={"site": "blocks.1.hook_resid_mid"})
    inputs.run = Run(small_run.path)
    inputs.run.__dict__["config"] = past
    assert "goes past blocks.1.hook_resid_mid" in str(replaceable_site(inputs))


def test_a_package_brings_a_measurement_and_a_broken_one_is_told(monkeypatch, tmp_path, capsys):
    code = "from evaluation.test_measurement import LARGEST as GIVEN\nfrom dataclasses import "
    code += "replace\nLARGEST = replace(GIVEN, name='packaged')\n"
    (tmp_path / "packaged_metric.py").write_text(code)
    info = tmp_path / "packaged_metric-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: packaged-metric\nVersion: 1.0\n")
    points = "packaged = packaged_metric:LARGEST\nother = packaged_metric:GIVEN\n"
    (info / "entry_points.txt").write_text(f"[saelab.measurements]\n{points}")
    monkeypatch.syspath_prepend(tmp_path)
    REGISTRY.forget()
    try:
        assert list(measurements())[-3:] == ["packaged", "largest", "counted"]
        assert "the measurement 'other' of the package packaged-metric" in capsys.readouterr().err
    finally:
        sys.modules.pop("packaged_metric", None)
        monkeypatch.undo()
        REGISTRY.forget()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (replace(LARGEST, name="density"), "has the name 'density' of saelab.evaluation.density"),
        (replace(LARGEST, name="summary"), "cannot have the name 'summary'"),
        (replace(LARGEST, name="a/b"), "cannot have the name 'a/b'"),
        (replace(LARGEST, stream=counted), "needs either measure or stream"),
        (replace(LARGEST, measure=None), "needs either measure or stream"),
    ],
)
def test_what_cannot_be_a_measurement_is_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        register_measurement(wrong)
    assert set(REGISTRY.registered) == {"largest", "counted"}

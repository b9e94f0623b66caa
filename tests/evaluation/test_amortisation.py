"""Evaluating with another encoder, beside the SAE's own on the same rows."""

import math
import shutil
from itertools import pairwise

import pytest
import torch

from saelab.activations.arrays import write_arrays
from saelab.config import UsageError
from saelab.evaluation.encoder_curves import encoder_curves
from saelab.evaluation.evaluate import evaluate
from saelab.evaluation.held_out import held_out_rows
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.report import beside, report
from saelab.evaluation.results import load_encoders, load_evaluation
from saelab.sae.topk import TopKConfig
from saelab.training.config import TrainConfig
from saelab.training.loop import train
from saelab.training.run import Run

OMP = EvaluateOptions(encoder="omp", n_tokens=60, batch_size=3)


@pytest.fixture(scope="module")
def measured(small_run, random_lm, tmp_path_factory):
    run = Run(shutil.copytree(small_run.path, tmp_path_factory.mktemp("omp") / "run"))
    own = evaluate(run, random_lm, OMP.model_copy(update={"encoder": None}))
    return run, own, evaluate(run, random_lm, OMP)


def test_both_encoders_are_measured_on_the_same_rows(measured):
    _, own, found = measured
    pair = found.amortisation
    assert pair.encoder == "omp"
    assert (pair.own_fvu, pair.own_l0) == pytest.approx(
        (own.reconstruction["fvu"], own.reconstruction["l0"])
    )
    assert (pair.fvu, pair.l0) == (found.reconstruction["fvu"], found.reconstruction["l0"])
    assert pair.l0 == pytest.approx(pair.own_l0, rel=0.01)
    assert pair.gap == pytest.approx(1 - pair.fvu / pair.own_fvu)
    assert pair.gap > 0.05
    assert 0 < pair.shared < 1
    assert pair.better > 0.5
    assert found.downstream["ce_plain"] == own.downstream["ce_plain"]
    assert found.downstream["ce_spliced"] != own.downstream["ce_spliced"]


def test_results_are_kept_apart_and_shown_beside_each_other(measured):
    run, own, found = measured
    assert own.amortisation is None
    assert "--encoder omp" in own.skipped["amortisation"]
    assert load_evaluation(run).reconstruction == own.reconstruction
    (loaded,) = load_encoders(run).items()
    assert loaded[0] == "omp"
    assert loaded[1].amortisation == found.amortisation
    assert load_evaluation(run, text="encoder-omp").reconstruction == found.reconstruction
    tables = beside("mine", own, {"omp": found})
    assert [table.title for table in tables][:2] == [
        "How much of the error is the encoder's?",
        "How faithful is it?",
    ]
    heads = [column.name for column in tables[1].columns if column.name]
    assert heads == ["mine", "omp"]
    fvu = next(row for row in tables[1].rows if row[0] == "FVU")
    assert fvu[1:3] == (f"{own.reconstruction['fvu']:.4f}", f"{found.reconstruction['fvu']:.4f}")


def test_an_encoder_that_misses_its_l0_is_warned_of(measured):
    found = measured[2]
    far = {**found.results, "amortisation": found.amortisation.__class__(
        **{**vars(found.amortisation), "wanted_l0": 9.0})}  # fmt: skip
    (table,) = report({"omp": found.__class__(far)}, ["amortisation"])
    assert "instead of 9.00" in table.warnings[0]


def test_places_name_the_encoder_its_l0_and_its_weights():
    options = EvaluateOptions(encoder="omp-l0", encoder_l0=4.5, encoder_weights="firing")
    assert options.saved_as == "encoder-omp-l0-firing-at-4.5"
    assert EvaluateOptions().saved_as is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"encoder_l0": 3.0}, "--encoder-l0 3.0 belongs to another encoder"),
        ({"encoder_weights": "firing"}, "--encoder-weights firing belongs"),
        ({"encoder": "lasso", "encoder_weights": "firing"}, "lasso has no weights"),
        ({"encoder": "omp", "encoder_l0": 1e4}, "An L0 of 10000 is not possible"),
    ],
)
def test_options_that_mean_nothing_are_refused(small_run, random_lm, tmp_path, options, says):
    run = Run(shutil.copytree(small_run.path, tmp_path / "run"))
    with pytest.raises(UsageError, match=says):
        evaluate(run, random_lm, EvaluateOptions(n_tokens=20, **options))
    assert not load_encoders(run)


def test_a_transcoder_is_encoded_towards_what_it_writes(mlp_run, random_lm, tmp_path):
    run = Run(shutil.copytree(mlp_run.path, tmp_path / "run"))
    options = OMP.model_copy(update={"suite": "full", "reach": 3, "n_ablated_tokens": 2})
    found = evaluate(run, random_lm, options)
    assert found.amortisation.gap > 0.1
    assert found.ablation.latents.n > 0
    assert "omp encodes what the transcoder writes" in found.skipped["uniformity"]
    x, target = held_out_rows(run, random_lm, n_tokens=40)
    assert target is not None
    assert (x.shape[1], target.shape[1]) == (run.load_sae().d_in, run.load_sae().d_out)


def test_a_run_on_arrays_is_measured_without_a_model(tmp_path):
    rows = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
    store = write_arrays(tmp_path / "store", {"mine": rows})
    config = {"sae": {"variant": "topk", "d_sae": 24, "k": 3}, "activations": store, "site": "mine"}
    config |= {"n_tokens": 3000, "batch_size": 100, "lr": 1e-2}
    run = train(TrainConfig.model_validate(config), out=tmp_path / "run")
    found = evaluate(run, options=EvaluateOptions(encoder="omp", n_tokens=200))
    assert found.amortisation.gap > 0
    assert found.amortisation.l0 == found.amortisation.own_l0
    x, target = held_out_rows(run, n_tokens=100)
    assert target is None
    assert x.shape[1] == 8


def test_curves_fall_with_l0_and_a_pursuit_lies_below_the_sae():
    g = torch.Generator().manual_seed(0)
    sae, x = TopKConfig(d_sae=24, k=3).build(8, g), torch.randn(100, 8, generator=g)
    found = encoder_curves(sae, x, encoders=["omp", "cel0"], l0s=[1, 2, 3])
    assert found.n_rows == 100
    for points in found.curves.values():
        assert [p.l0 for p in points] == pytest.approx([1, 2, 3], rel=0.1)
        assert all(a.fvu > b.fvu for a, b in pairwise(points))
        assert points[-1].fvu < found.own.fvu
    assert math.isclose(found.own.l0, 3, rel_tol=0.1)

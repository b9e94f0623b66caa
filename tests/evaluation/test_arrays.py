"""Runs trained on arrays with labels: planted directions are found, nothing else is."""

import numpy as np
import pytest
import torch

from saelab.activations.arrays import write_arrays
from saelab.config import UsageError
from saelab.evaluation.arrays import evaluate_arrays, halves
from saelab.evaluation.options import EvaluateOptions
from saelab.sae.storage import load_sae, save_sae
from saelab.training.config import TrainConfig
from saelab.training.loop import train

NAMES = ("colour=red", "colour=blue", "warm", "noise")


def planted(n=8000, d=12):
    """Rows that are sums of orthonormal atoms, and the labels that the first atoms stand for."""
    draw = np.random.default_rng(0)
    colour = draw.integers(3, size=n)
    on = np.stack([colour == 0, colour == 1, draw.random(n) < 0.3, draw.random(n) < 0.3], axis=1)
    codes = np.zeros((n, d), dtype=np.float32)
    codes[:, :3] = on[:, :3] * (1 + draw.random((n, 3)))
    codes[:, 4:] = (draw.random((n, d - 4)) < 0.1) * draw.random((n, d - 4))
    return codes, on


@pytest.fixture(scope="module")
def planted_run(tmp_path_factory):
    """A run whose latents are the atoms, on rows that its labels stand for."""
    directory = tmp_path_factory.mktemp("planted")
    x, on = planted()
    labels = dict(zip(NAMES, on.T, strict=True))
    store = write_arrays(directory / "store", {"x": x}, labels=labels, rows_per_unit=2000)
    sae = {"variant": "topk", "d_sae": 12, "k": 4}
    values = {"sae": sae, "activations": store, "site": "x", "n_tokens": 200, "batch_size": 100}
    run = train(TrainConfig.model_validate(values), out=directory / "run")
    trained = load_sae(run.weights, "cpu")
    with torch.no_grad():
        for name, value in trained.named_parameters():
            value.copy_(torch.eye(12) if name.startswith("W_") else torch.zeros(12))
    save_sae(trained, run.weights, {})
    return run


def test_labels_of_arrays_are_found_by_the_latents_planted_for_them(planted_run):
    result = evaluate_arrays(planted_run, EvaluateOptions(suite="full"))
    found = {feature.label: feature for feature in result.recovery.features}
    assert set(found) == set(NAMES)
    for latent, name in enumerate(NAMES[:3]):
        assert found[name].latent == latent
        assert found[name].f1 == pytest.approx(1, abs=0.01)
        assert found[name].probe_f1 > 0.95
    assert found["noise"].f1 < 0.6
    probing = {label.label: label for label in result.probing.labels}
    assert [probing[name].latents[0] for name in NAMES[:3]] == [0, 1, 2]
    assert [task.name for task in result.absorption.tasks] in ([], ["colour"])
    assert set(result.skipped) == {"downstream", "uniformity", "ablation", "amortisation"}
    saved = planted_run.evaluation("recovery")["features"]
    assert {feature["label"] for feature in saved} == set(NAMES)


def test_rows_of_arrays_meet_their_own_labels(planted_run):
    """Shuffled labels of the same frequency are found no better than chance."""
    x, on = planted()
    labels = np.random.default_rng(1).permutation(on)
    path = planted_run.path.parent / "shuffled"
    write_arrays(path, {"x": x}, labels=labels, label_names=NAMES, rows_per_unit=2000)
    run = train(
        planted_run.config.model_copy(update={"activations": path}), out=path.parent / "other"
    )
    save_sae(planted_run.load_sae(), run.weights, {})
    result = evaluate_arrays(run)
    assert max(feature.f1 for feature in result.recovery.features) < 0.6


def test_halves_are_stretches_of_neighbours():
    place = np.random.default_rng(0).permutation(6400)
    fit = halves(place)
    assert fit.sum() == 3200
    assert fit[place.argsort()].reshape(64, 100).all(1).sum() == 32


BAD = {
    "rows need (20,)": {"a": np.zeros(19, bool)},
    "rows need (20,) ": {"a": np.zeros((20, 1), bool)},
    "holds 2 (int64)": {"a": np.arange(20) % 3},
    "holds nan": {"a": np.full(20, np.nan)},
    "comparing with it": {"a": np.array(["x"] * 20)},
    "not empty": {" ": np.zeros(20, bool)},
    "names a label 3": {3: np.zeros(20, bool)},
    "printable": {"a\nb": np.zeros(20, bool)},
    "shorten it": {"a" * 201: np.zeros(20, bool)},
    "is no array": {"a": [[1], [1, 2], *[[]] * 18]},
    "more than the 1024": {f"l{i}": np.zeros(20, bool) for i in range(1025)},
}


@pytest.mark.parametrize("message", BAD)
def test_labels_that_are_none_are_refused_before_anything_is_written(message, tmp_path):
    with pytest.raises(UsageError) as caught:
        write_arrays(tmp_path / "s", {"x": np.zeros((20, 2))}, labels=BAD[message])
    assert message.strip() in str(caught.value)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (np.zeros((20, 2), bool), ("a",), "shape (20, 2); these rows need (20, 1)"),
        (np.zeros((20, 2), bool), ("a", "a"), "two labels named 'a'"),
        (np.zeros((20, 2), bool), None, "needs label_names"),
        (None, ("a",), "no labels were given"),
        ({"a": np.zeros(20, bool)}, ("a",), "leave label_names out"),
        (np.zeros((20, 0), bool), (), "is empty"),
    ],
)
def test_a_table_needs_a_name_for_each_column(labels, names, message, tmp_path):
    with pytest.raises(UsageError) as caught:
        write_arrays(tmp_path / "s", {"x": np.zeros((20, 2))}, labels=labels, label_names=names)
    assert message in str(caught.value)


def test_truth_values_are_read_in_whatever_they_come(tmp_path):
    from saelab.activations.store import ActivationStore

    truth = np.arange(20) % 3 == 0
    forms = {
        "bool": truth,
        "int": truth.astype(int),
        "float": truth.astype("f4"),
        "list": truth.tolist(),
        "torch": torch.from_numpy(truth),
    }
    write_arrays(tmp_path / "s", {"x": np.zeros((20, 2))}, labels=forms, rows_per_unit=8)
    store = ActivationStore(tmp_path / "s")
    context, labels = store.row_labels(np.arange(20)[::-1])
    assert labels is not None
    assert sorted(context.tolist()) == list(range(20))
    assert np.array_equal(labels, np.tile(truth[context][:, None], (1, 5)))


def test_a_store_is_not_taken_for_one_with_other_labels(tmp_path):
    x, truth = np.arange(40.0).reshape(20, 2), np.arange(20) % 3 == 0
    write_arrays(tmp_path / "s", {"x": x}, labels={"a": truth}, rows_per_unit=8)
    write_arrays(tmp_path / "s", {"x": x}, labels={"a": truth}, rows_per_unit=8)
    changed = truth ^ (np.arange(20) == 9)
    with pytest.raises(UsageError, match="holds other labels already, from row 8 on"):
        write_arrays(tmp_path / "s", {"x": x}, labels={"a": changed}, rows_per_unit=8)

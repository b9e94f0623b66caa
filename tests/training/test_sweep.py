"""Sweep files: what they mean, and what is wrong with them."""

import json

import pytest

from saelab.config import UsageError
from saelab.training.sweep import read_sweep

BASE = {
    "activations": "cache/tiny",
    "site": "blocks.2.hook_resid_post",
    "n_tokens": 1000,
    "sae": {"variant": "topk", "d_sae": 64, "k": 4},
}


@pytest.fixture
def sweep(tmp_path):
    def read(**parts):
        path = tmp_path / "sweep.json"
        path.write_text(json.dumps(parts))
        return read_sweep(path)

    return read


def test_a_grid_is_every_combination_on_top_of_the_base(sweep):
    found = sweep(base=BASE, grid={"sae.k": [4, 8], "lr": [1e-3, 2e-3]})
    assert list(found) == ["k4-lr0.001", "k4-lr0.002", "k8-lr0.001", "k8-lr0.002"]
    assert [(c.sae.k, c.lr) for c in found.values()] == [
        (4, 1e-3),
        (4, 2e-3),
        (8, 1e-3),
        (8, 2e-3),
    ]
    assert {c.sae.d_sae for c in found.values()} == {64}


def test_named_runs_may_change_everything(sweep):
    other = {"sae": {"variant": "batch-topk", "d_sae": 32, "k": 2}, "seed": 3}
    found = sweep(base=BASE, runs={"batch": other, "plain": {}})
    assert found["batch"].sae.variant == "batch-topk"
    assert found["batch"].seed == 3
    assert found["plain"].sae.variant == "topk"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"base": BASE}, "describes no run"),
        ({"base": BASE, "gird": {}}, "base, grid, runs and harvest, and no more"),
        ({"base": BASE, "grid": {"lr": 0.1}}, r"grid\.lr must be a list"),
        ({"base": BASE, "grid": {"lr": []}}, r"grid\.lr must be a list"),
        ({"base": BASE, "grid": {"lr": [0.1, 0.1]}}, "the same name"),
        ({"base": BASE, "grid": {"seed": list(range(1001))}}, "1001 runs, more than 1000"),
        ({"base": BASE, "grid": {"lr": [-1]}}, r"run lr_1: lr: .*greater than 0"),
        ({"base": BASE, "runs": {"a": {"sae.kk": 3}}}, r"run a: sae\.kk: "),
        ({"base": BASE, "runs": {"../a": {}}}, "is no name for a run"),
        ({"base": BASE, "runs": {"a": 3}}, "run a must be an object"),
        ({"base": BASE, "runs": {"a": {"site.x": 3}}}, "reaches into what is no object"),
        ({"base": [], "runs": {"a": {}}}, "base must be an object"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(sweep, parts, message):
    with pytest.raises(UsageError, match=message):
        sweep(**parts)


def test_a_file_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UsageError, match="is not whole JSON"):
        read_sweep(tmp_path / "sweep.json")
    with pytest.raises(UsageError, match="does not exist"):
        read_sweep(tmp_path / "missing.json")

"""Sweep files: what they mean, and what is wrong with them."""

import json

import pytest
import torch

from saelab.activations.arrays import write_arrays
from saelab.config import UsageError
from saelab.training.sweep import check_runs, read_harvest, read_sweep, sites_of

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


EVERY = {"site": "blocks.*.ln2.hook_out", "target_site": "blocks.*.hook_mlp_out"}


@pytest.fixture
def layered(tmp_path):
    """A base whose store has three sites of layers 0, 3 and 11."""
    names = ("ln2.hook_out", "hook_mlp_out", "attn.hook_z")
    sites = [f"blocks.{layer}.{name}" for layer in (11, 0, 3) for name in names]
    store = write_arrays(tmp_path / "store", {name: torch.randn(8, 4) for name in sites})
    return BASE | {"activations": str(store)}


def test_a_star_is_every_layer_of_which_the_store_has_the_sites(sweep, layered):
    runs = {"mlp": EVERY, "attn": {"site": "blocks.*.attn.hook_z", "layers": [11, 3]}, "one": {}}
    found = sweep(base=layered, runs=runs, grid={"sae.k": [2, 4]})
    names = ["mlp-00", "mlp-03", "mlp-11", "attn-11", "attn-03", "one"]
    assert list(found) == ["k2", "k4", *names]
    assert found["mlp-03"].site == "blocks.3.ln2.hook_out"
    assert found["mlp-03"].target_site == "blocks.3.hook_mlp_out"
    assert found["attn-11"].site == "blocks.11.attn.hook_z"
    assert found["attn-11"].target_site is None
    grid = sweep(base=layered | {"site": "blocks.*.attn.hook_z"}, grid={"sae.k": [2, 4]})
    assert [(c.sae.k, c.site[7]) for c in grid.values()] == [
        (k, layer) for k in (2, 4) for layer in "031"
    ]


def test_the_sites_of_a_sweep_are_those_of_the_models_layers(tmp_path):
    path = tmp_path / "sweep.json"
    last = {"site": "blocks.*.hook_resid_post", "layers": [2]}
    runs = {"mlp": EVERY, "again": EVERY, "last": last}
    path.write_text(json.dumps({"runs": runs, "harvest": {"model": "tiny"}}))
    assert read_harvest(path) == {"model": "tiny"}
    sites = [f"blocks.{n}.{part}" for n in (0, 1) for part in ("ln2.hook_out", "hook_mlp_out")]
    assert sorted(sites_of(path, 2)) == sorted([*sites, "blocks.2.hook_resid_post"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site": "blocks.*.hook_resid_mid"}, "has blocks.*.hook_resid_mid of no layer"),
        (EVERY | {"layers": [3, 7]}, r"lacks blocks\.7\.hook_mlp_out, blocks\.7\.ln2\.hook_out"),
        (EVERY | {"layers": []}, "layers must be a list of numbers, each once"),
        (EVERY | {"layers": [3, 3]}, "layers must be a list of numbers, each once"),
        (EVERY | {"layers": "all"}, "layers must be a list of numbers, each once"),
        ({"site": "blocks.*.*"}, "one layer, and so one"),
        ({"layers": [0]}, r"write \* for the layer in its site"),
    ],
)
def test_layers_that_are_not_there_are_named(sweep, layered, changes, message):
    with pytest.raises(UsageError, match=message):
        sweep(base=layered, runs={"a": changes})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"base": BASE}, "describes no run"),
        ({"base": BASE, "gird": {}}, "base, grid, runs, recipe and harvest, and no more"),
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
        (
            {"base": {"site": "blocks.*.x"}, "runs": {"a": {}}},
            "run a: activations is missing; name",
        ),
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


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"base": BASE, "harvest": {}}, "names activations and a harvest that makes them"),
        ({"harvest": {"sites": ["blocks.0.hook_resid_post"]}}, "takes its sites from the runs"),
        ({"harvest": {"out": "x", "device": "cpu"}}, "leave device and out out of it"),
    ],
)
def test_a_harvest_says_only_what_the_runs_do_not(tmp_path, parts, message):
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps(parts))
    with pytest.raises(UsageError, match=message):
        read_harvest(path)


def test_what_is_wrong_at_every_layer_is_said_before_there_is_a_store(tmp_path):
    path = tmp_path / "sweep.json"
    runs = {"a": {"site": "blocks.*.attn.hook_z"}, "b": EVERY | {"sae.variant": "k-sparse"}}
    path.write_text(json.dumps({"base": BASE, "runs": runs}))
    with pytest.raises(UsageError, match=r"Run b: .*k-sparse"):
        check_runs(path)

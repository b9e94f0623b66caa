"""Sets of runs: what a manifest must say, and which runs belong to it."""

import json
from pathlib import Path

import pytest
import torch

from saelab.analysis.verify_set import verify_set
from saelab.cli import main
from saelab.config import UsageError
from saelab.formats.json_file import sealed, write_sealed_json
from saelab.formats.tensors import write_tensors
from saelab.sae.topk import TopKConfig
from saelab.training.config import TrainConfig
from saelab.training.sets import SET, RunSet, is_set, runs_of, write_set

MODEL = {"name": "two", "weights_digest": "w", "tokenizer_digest": "t", "n_layers": 2}


def config(site, target=None) -> TrainConfig:
    sae = TopKConfig(d_sae=8, k=2)
    return TrainConfig(
        sae=sae, activations=Path("store"), site=site, target_site=target, n_tokens=1
    )


def both(layer) -> dict[str, TrainConfig]:
    at = f"blocks.{layer}"
    return {
        f"mlp-{layer}": config(f"{at}.ln2.hook_out", f"{at}.hook_mlp_out"),
        f"attention-{layer}": config(f"{at}.attn.hook_z"),
    }


def train(path, configs, **model):
    """What a training leaves of these runs, as far as a set reads it."""
    for name, each in configs.items():
        options = each.model_dump(mode="json")
        write_sealed_json(path / name / "config.json", options)
        facts = {"model": MODEL | model, "corpus": None}
        write_sealed_json(path / name / "provenance.json", facts)
        write_tensors(path / name / "weights.safetensors", {"W_dec": torch.zeros(2, 2)}, {})


@pytest.fixture
def whole(tmp_path):
    configs = both(1) | both(0)
    write_set(tmp_path, "transcoders+attention", MODEL, configs)
    train(tmp_path, configs)
    return tmp_path


def test_its_runs_come_in_the_order_in_which_the_model_computes_them(whole):
    order = ["attention-0", "mlp-0", "attention-1", "mlp-1"]
    assert is_set(whole)
    assert [run.name for run in RunSet(whole).runs] == order
    assert [run.name for run in runs_of([whole, whole / "mlp-0"])] == [*order, "mlp-0"]


def test_the_same_set_may_be_written_again_and_another_may_not(whole):
    before = (whole / SET).read_bytes()
    write_set(whole, "transcoders+attention", MODEL, both(0) | both(1))
    assert (whole / SET).read_bytes() == before
    with pytest.raises(UsageError, match="holds another set"):
        write_set(whole, "transcoders+attention", MODEL | {"name": "other"}, both(0) | both(1))


@pytest.mark.parametrize(
    ("configs", "said"),
    [
        (both(0) | {"mlp-1": both(1)["mlp-1"]}, "nothing for the attention of layer 1"),
        (both(0) | both(1) | both(2), "a run at layer 2, and two has 2 layers"),
        (both(0) | {"copy": both(0)["mlp-0"]}, "twice"),
        ({"mlp-0": config("blocks.0.hook_mlp_out")}, "takes transcoders of MLPs"),
        ({"x": config("blocks.0.ln2.hook_out", "blocks.1.hook_mlp_out")}, "takes transcoders"),
    ],
)
def test_nothing_is_written_for_runs_that_are_no_set(tmp_path, configs, said):
    with pytest.raises(UsageError, match=said):
        write_set(tmp_path, "transcoders", MODEL, configs)
    assert not list(tmp_path.iterdir())


def test_a_store_without_a_model_makes_no_set(tmp_path):
    with pytest.raises(UsageError, match="holds arrays"):
        write_set(tmp_path, "transcoders", None, both(0))
    with pytest.raises(UsageError, match="model's n_layers"):
        write_set(tmp_path, "transcoders", {k: MODEL[k] for k in list(MODEL)[:3]}, both(0))


def test_a_run_may_replace_several_layers_that_follow_each_other(tmp_path):
    reads, writes = (
        "+".join(f"blocks.{layer}.{part}" for layer in range(2))
        for part in ("mlp.hook_in", "hook_mlp_out")
    )
    (member,) = write_set(tmp_path, "clt", MODEL, {"mlp": config(reads, writes)}).members
    assert member.span == (0, 2, "mlp")
    turned = "+".join(reversed(writes.split("+")))
    with pytest.raises(UsageError, match="a set takes transcoders"):
        write_set(tmp_path / "other", "clt", MODEL, {"mlp": config(reads, turned)})


def test_a_run_of_another_model_is_named(whole):
    train(whole, {"mlp-0": both(0)["mlp-0"]}, name="other", weights_digest="other")
    with pytest.raises(UsageError, match="mlp-0 is of other, and its set of two"):
        _ = RunSet(whole).runs


def test_weights_that_were_cut_are_named_before_any_run_is_used(whole):
    weights = whole / "mlp-1" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"mlp-1/weights\.safetensors"):
        _ = RunSet(whole).runs


def test_a_run_of_another_site_is_named(whole):
    train(whole, {"mlp-1": both(0)["mlp-0"]})
    with pytest.raises(UsageError, match=r"mlp-1 reads blocks\.0.*its set says blocks\.1"):
        _ = RunSet(whole).runs


def test_a_run_that_is_not_finished_or_missing_is_named(whole):
    (whole / "mlp-0" / "weights.safetensors").unlink()
    with pytest.raises(UsageError, match="has no weights"):
        _ = RunSet(whole).runs
    (whole / "mlp-0" / "config.json").unlink()
    with pytest.raises(UsageError, match="lacks its run mlp-0, of the mlp of layer 0"):
        _ = RunSet(whole).runs


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "../mlp-0"}, "name"),
        ({"name": "mlp-0\n"}, "name"),
        ({"layer": 1}, "takes mlp-0.*for the mlp of layer 1"),
        ({"reads": "blocks.1.ln2.hook_out"}, "takes mlp-0"),
        ({"layer": 10**9}, "layer"),
    ],
)
def test_a_manifest_that_somebody_changed_is_refused(whole, change, said):
    values = json.loads((whole / SET).read_text())
    del values["sha256"]
    values["members"][1] |= change
    (whole / SET).write_text(json.dumps(sealed(values)))
    with pytest.raises(UsageError, match=said):
        RunSet(whole)
    values["members"] = []
    (whole / SET).write_text(json.dumps(sealed(values)))
    with pytest.raises(UsageError, match="members"):
        RunSet(whole)


def test_a_damaged_manifest_is_damage_as_any_other_and_hides_no_run(whole, capsys):
    runs = {damage.file for damage in verify_set(whole).damages}
    (whole / SET).write_bytes((whole / SET).read_bytes()[:50])
    files = [damage.file for damage in verify_set(whole).damages]
    assert files[0] == SET
    assert {*files} == {*runs, SET}
    assert any(file.startswith("mlp-0/") for file in files)
    assert main(["verify", str(whole)]) == 1
    assert "set.json: is not whole JSON" in capsys.readouterr().out

"""`saelab verify RUN` names each damaged file, what belongs to another SAE, and what is old."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bounded import at_most
from old_hdf5 import as_before
from safetensors.torch import load_file, save_file

from saelab.activations.format import tokens_path
from saelab.analysis.feature_file import FeatureFile, write_features
from saelab.analysis.features.collect import collect_features
from saelab.analysis.features.options import FeatureOptions
from saelab.analysis.records import Features
from saelab.analysis.verify_run import verify_run
from saelab.cli import main
from saelab.config import UsageError
from saelab.files import sha256_file
from saelab.formats.json_file import read_sealed_json, write_sealed_json
from saelab.lock import writing
from saelab.owner import host
from saelab.sae.storage import FORMAT, load_sae, save_sae
from saelab.sae.topk import TopKConfig
from saelab.training.config import TrainConfig
from saelab.training.find import find_runs
from saelab.training.loop import train
from saelab.training.run import Run

FILES = (
    *("config.json", "provenance.json", "weights.safetensors", "metrics.jsonl"),
    *("features.h5", "evaluation/reconstruction.json", "evaluation/density.json"),
)


@pytest.fixture(scope="module")
def measured(small_run, random_lm, tmp_path_factory):
    path = shutil.copytree(small_run.path, tmp_path_factory.mktemp("measured") / "run")
    run = Run(path)
    collect_features(run, random_lm, FeatureOptions(n_tokens=100))
    made = {"sae_sha256": sha256_file(run.weights)}
    run.save_evaluation("reconstruction", {"fvu": 0.125, "l0": 4.0})
    run.save_evaluation("density", {"made": made, "counts": [1, 2, 3]})
    return path


@pytest.fixture
def path(measured, tmp_path):
    return Path(shutil.copytree(measured, tmp_path / "run"))


def test_a_run_as_it_was_written_is_whole(path, capsys):
    found = verify_run(path)
    assert found.damages == found.notes == found.unsealed == []
    n = len(FILES) + 1  # The state that a longer training goes on from.
    assert found.n_files == n
    assert main(["verify", str(path)]) == 0
    assert f"whole: {n} files" in capsys.readouterr().out


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["cut", "changed", "another", "directory"])
def test_every_damaged_file_is_named(path, name, harm, capsys):
    file = path / name
    raw = bytearray(file.read_bytes())
    middle = len(raw) // 2
    file.unlink()
    if harm == "directory":
        file.mkdir()
        (file / "x.json").write_text("{")
        name = f"{name}/x.json"
    else:
        raw[middle] ^= 0x15
        middle -= 5  # Not between two lines of the log.
        changed = {
            "cut": raw[:middle],
            "changed": raw,
            "another": b"\x08\0\0\0\0\0\0\0{}      ",
        }
        file.write_bytes(changed[harm])
    if name == "metrics.jsonl" and harm == "changed":
        return  # A log has no checksum, and its lines may say anything.
    with at_most(1000):
        found = verify_run(path)
    assert name in {damage.file for damage in found.damages}
    assert all("\n" not in damage.problem for damage in found.damages)
    if harm == "cut":
        assert main(["verify", str(path)]) == 1
        assert f"{name}: " in capsys.readouterr().out


def test_files_of_earlier_versions_are_named_and_give_the_same(path):
    weights, features = load_sae(path / "weights.safetensors"), FeatureFile(path / "features.h5")
    expected = {name: np.array(features[name]) for name in features.arrays}
    for file in path.rglob("*.json"):
        values = json.loads(file.read_text())
        del values["sha256"]
        file.write_text(json.dumps(values))
    with as_before(path / "features.h5"):
        pass
    found = FeatureFile(path / "features.h5")
    for name, values in expected.items():
        assert np.array_equal(found[name], values)
    facts = {"format": FORMAT, "config": weights.config.model_dump_json()}
    old = load_file(path / "weights.safetensors")
    save_file(old, path / "weights.safetensors", facts | {"d_in": str(weights.d_in)})
    again = load_sae(path / "weights.safetensors").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in weights.state_dict().items())
    found = verify_run(path)
    assert sorted(found.unsealed) == sorted({*FILES} - {"metrics.jsonl"})
    # What was measured is of the file before, so of other bytes.
    assert {damage.file for damage in found.damages} == {"features.h5", "evaluation/density.json"}


def test_files_of_another_sae_are_told_apart(path):
    save_sae(TopKConfig(d_sae=8, k=2).build(4), path / "weights.safetensors")
    found = {damage.file: damage.problem for damage in verify_run(path).damages}
    assert "another SAE than config.json" in found["weights.safetensors"]
    assert "other weights" in found["features.h5"]
    assert "other weights" in found["evaluation/density.json"]


def test_another_store_is_told_and_a_missing_one_is_a_note(path, tmp_path):
    record = read_sealed_json(path / "provenance.json")
    write_sealed_json(path / "provenance.json", record | {"activations": "0" * 64})
    (damage,) = verify_run(path).damages
    assert damage.file == "provenance.json"
    assert "another store" in damage.problem
    options = read_sealed_json(path / "config.json")
    write_sealed_json(path / "config.json", options | {"activations": str(tmp_path / "gone")})
    found = verify_run(path)
    assert found.damages == []
    assert "gone is not there" in found.notes[0]


def test_what_is_neither_a_run_nor_a_store_is_refused(tmp_path, path, capsys):
    with pytest.raises(UsageError, match="is not a run"):
        verify_run(tmp_path)
    assert main(["verify", str(tmp_path)]) == 2
    assert main(["verify", str(path), "--reforward", "2"]) == 2
    assert "leave it out" in capsys.readouterr().err


def test_a_run_with_a_wide_configuration_takes_no_memory(path):
    """A million latents in kilobytes: a decoder of 16 GB."""
    old = load_file(path / "weights.safetensors")
    for d_sae, d_in in ((10**6, 4096), (10**12, 10**6), (2**31, 2**31)):
        config = TopKConfig(d_sae=d_sae, k=2).model_dump_json()
        facts = {"format": FORMAT, "config": config, "d_in": str(d_in)}
        save_file(old, path / "weights.safetensors", facts)
        with at_most(300), pytest.raises(UsageError, match=r"weights\.safetensors") as caught:
            load_sae(path / "weights.safetensors")
        assert "\n" not in str(caught.value)


def test_features_whose_parts_do_not_fit_each_other_are_one_sentence(path):
    file = FeatureFile(path / "features.h5")
    whole = {name: np.array(file[name]) for name in file.arrays}
    wrong = {
        "top/context": whole["top/context"].astype(np.int64) + 10**6,
        "top/position": whole["top/position"].astype(np.int64) + 1000,
        "top/window_count": whole["top/window_count"].astype(np.int64) + 100,
        "logits/top_tokens": whole["logits/top_tokens"] + 10**6,
        "latent/max": whole["latent/max"][:-1],
        "histogram/counts": whole["histogram/counts"][0],
        "vocabulary/offsets": whole["vocabulary/offsets"][::-1].copy(),
    }
    for name, values in wrong.items():
        write_features(path / "features.h5", whole | {name: values}, file.facts)
        with pytest.raises(UsageError, match="is not a whole features file"):
            [list(record.examples.values()) for record in Features(path)]


def test_a_damaged_run_hides_no_other(path, tmp_path):
    shutil.copytree(path, tmp_path / "deep" / "er" / "other")
    (path / "config.json").write_bytes(b"\xff")
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "pipe").mkdir()
    shutil.copy(path / "weights.safetensors", tmp_path / "pipe")
    (tmp_path / "pipe" / "config.json").symlink_to("/dev/zero")
    found = find_runs(tmp_path)
    assert [run.path for run in found.runs] == [tmp_path / "deep" / "er" / "other"]
    assert len(found.problems) == 2
    assert all("config.json" in problem for problem in found.problems)


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors"])
def test_a_run_that_lost_a_file_is_told_wherever_runs_are_looked_for(path, tmp_path, name, capsys):
    averaged = Path(shutil.copytree(path, tmp_path / "above")) / "ema"
    shutil.copytree(path, averaged)
    for run in (path, averaged):
        (run / name).unlink()
        with pytest.raises(UsageError, match=name):
            Run(run).load_sae()
    found = find_runs(tmp_path)
    assert [run.path for run in found.runs] == [averaged.parent]
    assert sorted(problem.split()[0] for problem in found.problems) == [str(averaged), str(path)]
    assert f"ema/{name}" in [damage.file for damage in verify_run(averaged.parent).damages]
    assert main(["verify", str(path)]) == (2 if name == "config.json" else 1)
    told = capsys.readouterr()
    assert name in told.out + told.err
    assert main(["show", str(path)]) == (2 if name == "config.json" else 0)


def test_an_unfinished_run_is_told_as_such_and_a_language_model_is_no_run(
    path, checkpoint, tmp_path
):
    for name in ("weights.safetensors", "features.h5", "steering.h5"):
        (path / name).unlink(missing_ok=True)
    for name in ("evaluation", "circuits", "experiments"):
        shutil.rmtree(path / name, ignore_errors=True)
    shutil.copytree(checkpoint, tmp_path / "model")
    found = find_runs(tmp_path)
    assert found.runs == []
    (problem,) = found.problems
    assert problem == f"{path} has no weights yet; run its `saelab train` again."
    assert verify_run(path).damages == []
    with writing(path):
        (problem,) = find_runs(tmp_path).problems
    assert problem == f"{path} is being trained by process {os.getpid()} on {host()}."


def test_a_store_with_a_damaged_token_file_is_not_trained_on(small_store, small_run, tmp_path):
    store = Path(shutil.copytree(small_store.path, tmp_path / "store"))
    config = small_run.config.model_copy(update={"activations": store})
    file = tokens_path(store, small_store.units[-1])
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(raw)
    with pytest.raises(UsageError, match=rf"tokens/{file.name}"):
        train(TrainConfig.model_validate(config.model_dump()), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()

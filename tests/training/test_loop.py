"""Training runs: what they write, how they continue, what they refuse."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import small_config
from rest import rest

from saelab.config import UsageError
from saelab.sae.dictionary import geometric_median
from saelab.sae.variants import BUILT_IN, sized
from saelab.training.find import find_runs
from saelab.training.loop import train
from saelab.training.objectives import make_objective
from saelab.training.run import Run
from saelab.training.source import Source
from saelab.training.state import TrainingState
from saelab.training.steps import AutogradSteps

NAMES = list(BUILT_IN)
SAE = {"d_sae": 48, "k": 4}
CHANGES = {
    "abs-topk-batch": {"sae": {"variant": "abs-topk", "selection": "batch", **SAE}},
    "matryoshka-random": {"sae": {"variant": "matryoshka", "random_prefixes": 3, **SAE}},
    "topk-e2e": {"objective": "e2e", "batch_size": 96},
}


def test_a_run_directory_holds_what_its_docstring_says(small_run, small_store):
    names = {path.name for path in small_run.path.iterdir()}
    assert {"config.json", "provenance.json", "weights.safetensors", "metrics.jsonl"} <= names
    record = small_run.provenance()
    assert record["activations"] == small_store.manifest.content_digest
    assert record["model"]["weights_digest"] == small_store.manifest.model["weights_digest"]
    assert find_runs(small_run.path.parent).runs[0].path == small_run.path


def test_training_lowers_fvu_and_logs_every_interval(small_run):
    lines = small_run.metrics()
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert lines[-1]["fvu"] < lines[0]["fvu"]
    assert lines[-1]["tokens"] == 4000


def started(config):
    """A state before its first step, its stream, and its objective."""
    source = Source([config], torch.device("cpu"))
    state = TrainingState.start(config, source, source.start_rows())
    return state, source.stream(), make_objective(source)


def by_autograd(state) -> AutogradSteps:
    assert isinstance(state.steps, AutogradSteps)
    return state.steps


def advance(state, stream, objective, steps):
    for _ in range(steps):
        state.train_on(next(stream), objective)


def test_the_bias_starts_at_the_geometric_median_of_the_scaled_rows(small_store):
    site = small_store.site("blocks.0.hook_resid_post")
    rows = site.rows(0, small_store.n_rows)
    state, _, _ = started(small_config(small_store, normalise=False))
    torch.testing.assert_close(by_autograd(state).sae.b_dec.detach(), geometric_median(rows))
    scale = (site.d_in / site.total_variance) ** 0.5
    state, _, _ = started(small_config(small_store))
    torch.testing.assert_close(
        by_autograd(state).sae.b_dec.detach(), geometric_median(rows * scale)
    )


@pytest.mark.parametrize("variant", [*NAMES, "abs-topk-batch", "matryoshka-random", "topk-e2e"])
def test_stopping_and_resuming_equals_not_stopping_bit_for_bit(small_store, tmp_path, variant):
    config = small_config(small_store, dead_after=300, seed=3, **CHANGES.get(variant, {}))
    if variant in NAMES:
        sae = sized(variant, 48, 4).model_dump()
        config = small_config(small_store, sae=sae, dead_after=300, seed=3)
    whole, stream, objective = started(config)
    advance(whole, stream, objective, 40)
    first, stream, objective = started(config)
    advance(first, stream, objective, 17)
    first.save(tmp_path, stream.state_dict())
    second, stream, objective = started(config)
    place = second.restore(tmp_path)
    assert place is not None
    stream.load_state_dict(place)
    advance(second, stream, objective, 23)
    ours, theirs = whole.steps.tensors(), second.steps.tensors()
    weights = "sae.W_left" if variant == "bilinear" else "sae.W_dec"
    assert ours.keys() == theirs.keys() > {weights, "since_fired"}
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_equal_seeds_give_equal_runs_and_other_seeds_others(small_store, tmp_path):
    runs = [
        train(small_config(small_store, n_tokens=500, seed=seed), out=tmp_path / name)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    a, b, c = (run.load_sae().W_dec for run in runs)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_finished_run_is_returned_as_it_is(small_run, small_store):
    before = small_run.weights.stat().st_mtime_ns
    assert train(small_config(small_store), out=small_run.path).path == small_run.path
    assert small_run.weights.stat().st_mtime_ns == before


def test_a_run_from_before_an_option_existed_is_the_same_run(small_run, small_store, tmp_path):
    out = shutil.copytree(small_run.path, tmp_path / "run")
    options = json.loads((out / "config.json").read_text())
    new = ("adam_beta1", "adam_beta2", "adam_eps", "weight_decay", "ema", "schedule")
    new += ("warmup_shape", "initial_lr_fraction", "final_lr_fraction")
    for name in ("skip", "target_site", "sha256", *new):
        del options[name]
    (out / "config.json").write_text(json.dumps(options))
    assert train(small_config(small_store), out=out).finished
    with pytest.raises(UsageError, match=r"other options \(target_site: None there, x asked\)"):
        train(small_config(small_store, target_site="x"), out=out)


def test_another_configuration_on_the_same_directory_is_refused_by_name(small_run, small_store):
    with pytest.raises(UsageError, match=r"other options \(sae\.k: 4 there, 5 asked\)"):
        train(
            small_config(small_store, sae={"variant": "topk", "d_sae": 32, "k": 5}),
            out=small_run.path,
        )
    with pytest.raises(UsageError, match=r"other options \(seed: 0 there, 5 asked\)"):
        train(small_config(small_store, seed=5), out=small_run.path)


def test_a_directory_with_other_things_is_left_alone(small_store, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not empty and holds no run"):
        train(small_config(small_store), out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site": "blocks.0.hook_resid_pots"}, "blocks.0.hook_resid_post"),
        ({"sae": {"variant": "topk", "d_sae": 8, "k": 9}}, "k=9 exceeds d_sae=8"),
        ({"activations": "no/such/store"}, "no/such/store"),
    ],
)
def test_bad_options_write_nothing(small_store, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        train(small_config(small_store, **changes), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("on_cpu")
def test_metrics_after_the_checkpoint_are_cut_when_a_run_resumes(small_store, tmp_path):
    out = tmp_path / "run"
    config = small_config(small_store)
    state, stream, objective = started(config)
    advance(state, stream, objective, 20)
    out.mkdir()
    (out / "config.json").write_text(config.to_json())
    state.save(out / "checkpoints", stream.state_dict())
    stale = [json.dumps({"step": step, "fvu": -1.0}) for step in (10, 20, 30)]
    (out / "metrics.jsonl").write_text("\n".join(stale) + '\n{"step": 4')
    run = train(config, out=out)
    assert [line["step"] for line in run.metrics()] == [10, 20, 30, 40]
    assert run.metrics()[2]["fvu"] >= 0
    assert [path.name[:14] for path in (out / "checkpoints").iterdir()] == ["step_000000040"]


def train_process(config, out):
    names = ("activations", "site", "n_tokens", "batch_size", "lr", "log_every", "dead_after")
    names += ("checkpoint_every",)
    arguments = [sys.executable, "-m", "saelab.cli", "train", "topk", "--d-sae", "32", "--k", "4"]
    for name in names:
        arguments += [f"--{name.replace('_', '-')}", str(getattr(config, name))]
    return subprocess.Popen([*arguments, "--out", str(out)], stderr=subprocess.DEVNULL)


def wait_for(process, found):
    while process.poll() is None and not found():
        time.sleep(0.002)
    assert process.poll() is None, "training ended before it could be stopped"


@pytest.fixture(scope="module")
def whole(small_store, tmp_path_factory):
    """A training long enough to be stopped, which was not."""
    return train(small_config(small_store, n_tokens=50_000), out=tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("number", "checkpoint_every"), [(signal.SIGKILL, 40), *rest((signal.SIGTERM, 10**6))]
)
def test_a_stopped_training_continues_to_the_very_same_sae(
    small_store, whole, tmp_path, number, checkpoint_every
):
    config = small_config(small_store, n_tokens=50_000, checkpoint_every=checkpoint_every)
    out = tmp_path / "run"
    process = train_process(config, out)
    if number != signal.SIGKILL:
        metrics = out / "metrics.jsonl"
        wait_for(process, lambda: metrics.is_file() and metrics.stat().st_size)
    else:
        wait_for(process, lambda: list(out.glob("checkpoints/step_*")))
    process.send_signal(number)
    assert process.wait(timeout=60) == (-number if number == signal.SIGKILL else 128 + number)
    assert list(out.glob("checkpoints/step_*"))
    assert not Run(out).finished
    assert (out / "writer.lock").exists() == (number == signal.SIGKILL)
    stopped = train(config, out=out)
    expected = whole.load_sae().state_dict()
    for name, value in stopped.load_sae().state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert [line["fvu"] for line in stopped.metrics()][-1] == whole.metrics()[-1]["fvu"]

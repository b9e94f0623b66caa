"""A finished run that goes on for more tokens, and what may change when a run goes on."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import small_config
from training.test_kept import BATCH_TOPK, JUMPRELU, equal_weights, figures
from training.test_loop import advance, by_autograd, started

from saelab.activations.arrays import write_arrays
from saelab.config import UsageError
from saelab.evaluation.evaluate import evaluate
from saelab.training.find import find_runs
from saelab.training.loop import train, train_many
from saelab.training.run import Run
from saelab.training.run_paths import kept_at
from saelab.training.schedule import learning_rate

pytestmark = pytest.mark.usefixtures("on_cpu")

STEADY = {"decay_fraction": 0.0, "warmup_steps": 3, "dead_after": 500}
"""What n_tokens decides, given: then a run does not look ahead to its end."""


@pytest.mark.parametrize("sae", [BATCH_TOPK, JUMPRELU | {"l0_warmup": 0.0}])
def test_a_run_made_longer_is_one_of_that_length_from_the_beginning(small_store, tmp_path, sae):
    short = small_config(small_store, sae=sae, n_tokens=2000, keep_every=1000, **STEADY)
    long = short.model_copy(update={"n_tokens": 4000})
    train(short, out=tmp_path / "run")
    longer, whole = train(long, out=tmp_path / "run"), train(long, out=tmp_path / "whole")
    assert equal_weights(longer, whole)
    assert figures(longer) == figures(whole)
    assert longer.options == json.loads(long.model_dump_json())
    names = {run.path.name for run in find_runs(longer.path / "kept").runs}
    assert names == {run.path.name for run in find_runs(whole.path / "kept").runs}
    assert longer.provenance()["longer"][0]["from"] == 2000


def test_results_of_the_shorter_run_go_with_its_weights(small_store, random_lm, tmp_path):
    short = small_config(small_store, n_tokens=2000, sae=BATCH_TOPK)
    run = train(short, out=tmp_path / "run")
    before = run.load_sae().state_dict()
    measured = evaluate(run, random_lm, n_tokens=20).reconstruction
    (run.path / "features.h5").write_text("of the shorter run")
    (run.path / "notes.sqlite").write_text("of the reader")
    run = train(short.model_copy(update={"n_tokens": 3000}), out=run.path)
    assert run.evaluation("reconstruction") is None
    assert not run.features_path.exists()
    assert (run.path / "notes.sqlite").exists()
    shorter = Run(kept_at(run.path, 2000))
    assert shorter.name == "run@2000"
    assert shorter.config.n_tokens == 2000
    assert shorter.features_path.read_text() == "of the shorter run"
    assert shorter.evaluation("reconstruction") == measured
    assert all(torch.equal(v, before[n]) for n, v in shorter.load_sae().state_dict().items())
    assert [line["step"] for line in shorter.metrics()] == [10, 20]
    assert evaluate(shorter, random_lm, n_tokens=20).reconstruction == measured


@pytest.mark.parametrize("until", ["evaluation", "weights.safetensors"])
def test_a_kill_while_results_are_moved_loses_nothing(
    small_store, random_lm, tmp_path, monkeypatch, until
):
    short = small_config(small_store, n_tokens=2000)
    long = short.model_copy(update={"n_tokens": 3000})
    run = train(short, out=tmp_path / "run")
    measured = evaluate(run, random_lm, n_tokens=20).reconstruction
    move = "saelab.training.kept._move"

    def killed(path, to):
        if path.name == until:
            raise KeyboardInterrupt
        path.replace(to)

    with monkeypatch.context() as patched:
        patched.setattr(move, killed)
        with pytest.raises(KeyboardInterrupt):
            train(long, out=run.path)
    run = train(long, out=run.path)
    assert run.finished
    assert Run(kept_at(run.path, 2000)).evaluation("reconstruction") == measured
    assert equal_weights(run, _made_longer(short, long, tmp_path / "other"))


def _made_longer(short, long, out):
    train(short, out=out)
    return train(long, out=out)


def test_the_rate_rises_from_where_it_was_to_that_of_the_longer_run(small_store, tmp_path):
    short = small_config(small_store, n_tokens=2000, warmup_steps=4, log_every=1)
    long = short.model_copy(update={"n_tokens": 4000})
    run = _made_longer(short, long, tmp_path / "run")
    rates = [line["lr"] for line in run.metrics()]
    assert rates[:20] == [learning_rate(short, step) for step in range(20)]
    assert rates[19] < 0.3 * short.peak_lr
    share = [(rate - rates[19]) / (short.peak_lr - rates[19]) for rate in rates[20:24]]
    assert share == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[24:] == [learning_rate(long, step) for step in range(24, 40)]


def test_a_longer_run_that_is_interrupted_continues_to_the_bit(small_store, tmp_path):
    short = small_config(small_store, n_tokens=2000, checkpoint_every=3, warmup_steps=4)
    long = short.model_copy(update={"n_tokens": 4000})
    whole = _made_longer(short, long, tmp_path / "whole")
    out = train(short, out=tmp_path / "run").path
    state, stream, objective = started(long)
    place = state.restore(out / "checkpoints")
    assert place is not None
    stream.load_state_dict(place)
    advance(state, stream, objective, 2)
    state.save(out / "checkpoints", stream.state_dict())
    assert equal_weights(train(long, out=out), whole)


def test_runs_of_one_read_are_made_longer_together(small_store, tmp_path):
    saes = {"a": BATCH_TOPK, "b": BATCH_TOPK | {"k": 6}}
    short = {tmp_path / n: small_config(small_store, sae=s, **STEADY) for n, s in saes.items()}
    long = {out: config.model_copy(update={"n_tokens": 6000}) for out, config in short.items()}
    train_many(short)
    longer = train_many(long)
    whole = train_many({tmp_path / "whole" / out.name: c for out, c in long.items()})
    assert all(equal_weights(one, other) for one, other in zip(longer, whole, strict=True))


def test_what_cannot_be_made_longer_says_why(small_store, tmp_path):
    config = small_config(small_store, n_tokens=2000)
    run = train(config, out=tmp_path / "run")
    with pytest.raises(UsageError, match="holds a run of 2000 tokens, more than n_tokens=1000"):
        train(config.model_copy(update={"n_tokens": 1000}), out=run.path)
    dropped = config.model_copy(update={"keep_state": False})
    assert train(dropped, out=run.path).finished
    assert not (run.path / "checkpoints").exists()
    with pytest.raises(UsageError, match=r"kept no state to go on from.*--init-from"):
        train(config.model_copy(update={"n_tokens": 3000}), out=run.path)


def test_a_stop_between_the_last_checkpoint_and_the_weights_is_no_loss(small_store, tmp_path):
    config = small_config(small_store, n_tokens=2000)
    run, whole = train(config, out=tmp_path / "run"), train(config, out=tmp_path / "whole")
    run.weights.unlink()
    assert equal_weights(train(config, out=run.path), whole)


def begun(config, out, steps=13):
    """A run that was stopped after so many steps."""
    whole = train(config, out=out)
    whole.weights.unlink()
    shutil.rmtree(out / "checkpoints")
    state, stream, objective = started(config)
    advance(state, stream, objective, steps)
    state.save(out / "checkpoints", stream.state_dict())
    return state


def test_options_that_change_no_step_may_change(small_store, tmp_path, monkeypatch):
    config = small_config(small_store, n_tokens=2000)
    whole = train(config, out=tmp_path / "whole")
    begun(config, tmp_path / "run")
    (tmp_path / "link").symlink_to(small_store.path)
    monkeypatch.chdir(tmp_path)
    changes = {"log_every": 3, "checkpoint_every": 4, "keep_at": (1900,), "keep_state": False}
    for path in (os.path.relpath(small_store.path), tmp_path / "link"):
        other = small_config(small_store, n_tokens=2000, activations=path, **changes)
        run = train(other, out=tmp_path / "run")
    assert equal_weights(run, whole)
    assert run.options["log_every"] == 3
    assert equal_weights(Run(kept_at(run.path, 1900)), Run(kept_at(run.path, 1900)))
    assert [line["step"] for line in run.metrics()][-2:] == [18, 20]


def test_a_store_that_moved_is_the_same_store(small_store, tmp_path):
    config = small_config(small_store, n_tokens=2000)
    begun(config, tmp_path / "run")
    moved = shutil.copytree(small_store.path, tmp_path / "moved")
    other = config.model_copy(update={"activations": moved})
    run = train(other, out=tmp_path / "run")
    assert run.options["activations"] == str(moved)
    again = shutil.copytree(moved, tmp_path / "again")
    run = train(config.model_copy(update={"activations": again}), out=run.path)
    assert Run(run.path).options["activations"] == str(again)


def test_arrays_of_the_same_shape_are_another_store(tmp_path):
    x = np.random.default_rng(0).normal(size=(3000, 6))
    stores = [write_arrays(tmp_path / n, {"x": v}) for n, v in (("a", x), ("b", x + 1))]
    sae = {"variant": "topk", "d_sae": 16, "k": 4}
    values = {"sae": sae, "site": "x", "n_tokens": 2000, "batch_size": 100}
    from saelab.training.config import TrainConfig

    one, other = (TrainConfig.model_validate(values | {"activations": s}) for s in stores)
    begun(one, tmp_path / "run")
    with pytest.raises(UsageError, match=r"other options \(activations: "):
        train(other, out=tmp_path / "run")
    shutil.rmtree(stores[0])
    write_arrays(stores[0], {"x": x + 1})
    with pytest.raises(UsageError, match=r"holds other activations than .*run was begun on"):
        train(one, out=tmp_path / "run")
    shutil.rmtree(stores[0])
    write_arrays(stores[0], {"x": x})
    assert train(one, out=tmp_path / "run").finished


def test_what_is_past_cannot_be_kept(small_store, tmp_path):
    config = small_config(small_store, n_tokens=2000)
    begun(config, tmp_path / "run")
    with pytest.raises(UsageError, match=r"--keep-at 1200 is past: .* trained on 1300 tokens"):
        train(config.model_copy(update={"keep_at": (1200,)}), out=tmp_path / "run")
    run = train(config.model_copy(update={"keep_at": (1400,)}), out=tmp_path / "run")
    assert Run(kept_at(run.path, 1400)).finished
    with pytest.raises(UsageError, match="--keep-at 1500 is past"):
        train(config.model_copy(update={"keep_at": (1400, 1500)}), out=run.path)


def test_the_rate_of_a_run_that_was_never_made_longer_is_the_schedules(small_store):
    config = small_config(small_store)
    state, _, _ = started(config)
    assert [state.rate(i) for i in range(40)] == [learning_rate(config, i) for i in range(40)]
    assert by_autograd(state).name == "autograd"

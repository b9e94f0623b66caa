"""Runs that a training keeps on its way."""

import json

import pytest
import torch
from conftest import small_config
from kernels.triton_device import DEVICE
from rest import rest

from saelab.config import UsageError
from saelab.evaluation.evaluate import evaluate
from saelab.training.find import find_runs
from saelab.training.loop import train
from saelab.training.run import Run
from saelab.training.run_paths import kept_at

BATCH_TOPK = {"variant": "batch-topk", "d_sae": 32, "k": 4}
JUMPRELU = {"variant": "jumprelu", "d_sae": 32, "k": 4}


def equal_weights(one, other):
    a, b = (run.load_sae().state_dict() for run in (one, other))
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def figures(run):
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in run.metrics()]


@pytest.mark.parametrize("sae", [BATCH_TOPK, JUMPRELU])
def test_keeping_changes_nothing_of_the_training(small_store, tmp_path, sae):
    plain = small_config(small_store, sae=sae)
    keeping = small_config(small_store, sae=sae, keep_at=(1, 950), keep_every=1500)
    one, other = train(plain, out=tmp_path / "plain"), train(keeping, out=tmp_path / "keeping")
    assert equal_weights(one, other)
    assert figures(one) == figures(other)
    kept = [run.config.n_tokens for run in find_runs(other.path).runs]
    assert kept == [4000, 100, 1000, 1500, 3000]
    assert [run.name for run in find_runs(other.path).runs][1:3] == ["keeping@100", "keeping@1000"]


def test_what_is_kept_last_is_the_run_itself(small_store, tmp_path):
    config = small_config(small_store, sae=BATCH_TOPK, keep_every=2000)
    run = train(config, out=tmp_path / "run")
    last = Run(kept_at(run.path, 4000))
    assert equal_weights(run, last)
    assert not equal_weights(run, Run(kept_at(run.path, 2000)))
    assert last.provenance()["part_of"] == {"step": 40, "of_n_tokens": 4000}
    assert last.domain == run.domain


def test_what_is_kept_is_the_sae_of_a_training_that_ends_there(small_store, tmp_path):
    """With a rate that does not fall at the end, and all that n_tokens decides given."""
    given = {"sae": BATCH_TOPK, "decay_fraction": 0.0, "warmup_steps": 3, "dead_after": 500}
    config = small_config(small_store, **given, keep_at=(1700,))
    kept = Run(kept_at(train(config, out=tmp_path / "long").path, 1700))
    short = train(small_config(small_store, **given, n_tokens=1700), out=tmp_path / "short")
    assert equal_weights(kept, short)


def test_a_kept_run_is_evaluated_like_any_other(small_store, random_lm, tmp_path):
    config = small_config(small_store, keep_at=(2000,), sae=BATCH_TOPK)
    kept = Run(kept_at(train(config, out=tmp_path / "run").path, 2000))
    result = evaluate(kept, random_lm, n_tokens=20)
    assert result.reconstruction["l0"] > 0
    assert kept.evaluation("reconstruction") == result.reconstruction


def test_a_kept_run_that_a_kill_left_half_is_written_again(small_store, tmp_path):
    config = small_config(small_store, keep_at=(2000,))
    whole = train(config, out=tmp_path / "whole")
    half = kept_at(tmp_path / "run", 2000)
    half.mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(config.to_json())
    record = (whole.path / "provenance.json").read_text()
    (tmp_path / "run" / "provenance.json").write_text(record)
    (half / "config.json").write_text(config.to_json())
    run = train(config, out=tmp_path / "run")
    assert equal_weights(Run(half), Run(kept_at(whole.path, 2000)))
    assert json.loads((half / "config.json").read_text())["n_tokens"] == 2000
    assert equal_weights(run, whole)


@pytest.mark.parametrize("tokens", [0, 4001, -5])
def test_what_is_no_point_of_the_training_is_refused(small_store, tmp_path, tokens):
    with pytest.raises(UsageError, match=rf"--keep-at {tokens} is no point of a training on 4000"):
        train(small_config(small_store, keep_at=(tokens,)), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["batch-topk", *rest("jumprelu")])
def test_a_training_by_kernels_is_the_same_with_what_it_keeps(small_store, tmp_path, variant):
    given = {"sae": {"variant": variant, "d_sae": 12, "k": 2}, "step": "fused", "log_every": 1}
    config = small_config(small_store, **given, batch_size=4, n_tokens=12)
    plain = train(config, out=tmp_path / "plain", device=DEVICE)
    keeping = config.model_copy(update={"keep_at": (4,)})
    run = train(keeping, out=tmp_path / "run", device=DEVICE)
    assert equal_weights(run, plain)
    kept = Run(kept_at(run.path, 4)).load_sae()
    torch.testing.assert_close(kept.W_dec.norm(dim=1), torch.ones(12))
    assert not torch.equal(kept.W_dec, run.load_sae().W_dec)
    longer = config.model_copy(update={"n_tokens": 16})
    assert train(longer, out=run.path, device=DEVICE).metrics()[-1]["tokens"] == 16
    start = config.model_copy(update={"init_from": run.path, "lr": 1e-12, "n_tokens": 4})
    tuned = train(start, out=tmp_path / "tuned", device=DEVICE)
    torch.testing.assert_close(tuned.load_sae().W_dec, run.load_sae().W_dec)

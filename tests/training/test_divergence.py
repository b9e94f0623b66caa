"""A training that diverges stops with a sentence, keeps what was good; no sane one does."""

import json
import re

import pytest
import torch
from conftest import small_config

from saelab.cli import main
from saelab.config import UsageError
from saelab.sae.topk import TopKConfig
from saelab.sae.variants import BUILT_IN, sized
from saelab.training.divergence import LIMIT, DivergedError, Watch
from saelab.training.loop import train, train_many
from saelab.training.one_training import watch_over
from saelab.training.run import Run
from saelab.training.source import Source
from saelab.training.state import TrainingState

NAMES = [name for name in BUILT_IN if sized(name, 32, 4).fitted_by is None]
"""Variants with a learning rate."""


def config_of(store, variant="topk", **options):
    """Twenty steps, with a line of metrics after every five."""
    values = {"n_tokens": 2000, "log_every": 5, "warmup_steps": 0, **options}
    sae = {"variant": variant, "d_sae": 32}
    sae |= {} if variant in ("standard", "gated") else {"k": 4}
    return small_config(store, sae=sae, **values)


@pytest.mark.parametrize(
    ("variant", "lr"), [*((name, 1e6) for name in NAMES), ("topk", 1e4), ("topk", 1e30)]
)
def test_every_variant_stops_early_at_rates_that_are_far_too_high(
    small_store, tmp_path, variant, lr
):
    out = tmp_path / "run"
    expected = f"no checkpoint had been written. Lower --lr ({lr:g})"
    with pytest.raises(DivergedError, match=re.escape(expected)):
        train(config_of(small_store, variant, lr=lr), out=out)
    assert not Run(out).finished
    assert not list(out.glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("variant", "lr"), [*((name, 0.3) for name in NAMES), ("topk", 1e-2), ("topk", 1e-5)]
)
def test_no_variant_is_stopped_at_rates_that_learn(small_store, tmp_path, variant, lr):
    assert train(config_of(small_store, variant, lr=lr), out=tmp_path / "run").finished


def test_training_end_to_end_stops_too(small_store, random_lm, tmp_path):
    config = config_of(small_store, objective="e2e", batch_size=96, lr=1e6)
    with pytest.raises(DivergedError, match="diverged at step"):
        train(config, out=tmp_path / "run", lm=random_lm)


@pytest.mark.usefixtures("on_cpu")
def test_no_checkpoint_of_weights_that_diverged_is_written(small_store, tmp_path):
    """The rate grows by .8 a step, and a checkpoint is due after every one."""
    out = tmp_path / "run"
    given = {"checkpoint_every": 1, "log_every": 1000, "lr": 8e5, "warmup_steps": 10**6}
    config = config_of(small_store, **given)
    with pytest.raises(DivergedError, match="from before, is kept") as error:
        train(config, out=out)
    source = Source([config], torch.device("cpu"))
    rows = source.start_rows()
    state = TrainingState.start(config, source, rows)
    watch = watch_over(state, source, rows)
    state.restore(out / "checkpoints")
    assert f"the checkpoint of step {state.step}," in str(error.value)
    assert state.step > 1
    assert watch.problem(state.steps.trained()) is None


def test_one_diverged_training_of_a_group_leaves_the_others_as_they_are(small_store, tmp_path):
    good = config_of(small_store)
    configs = {
        tmp_path / "wild": config_of(small_store, lr=1e6),
        tmp_path / "good": good,
        tmp_path / "alone": config_of(small_store, seed=1),
    }
    with pytest.raises(DivergedError, match=r"wild diverged.*The other 2 are finished"):
        train_many(configs)
    alone = train(good, out=tmp_path / "by itself")
    for name, value in alone.load_sae().state_dict().items():
        assert torch.equal(value, Run(tmp_path / "good").load_sae().state_dict()[name]), name


def test_the_same_command_says_it_again_and_another_rate_needs_another_directory(
    small_store, tmp_path
):
    out, config = tmp_path / "run", config_of(small_store, lr=1e6)
    for _ in range(2):
        with pytest.raises(DivergedError, match="diverged at step"):
            train(config, out=out)
    with pytest.raises(UsageError, match=r"lr: 1000000\.0 there, 0\.01 asked"):
        train(config_of(small_store, lr=1e-2), out=out)


def test_the_command_exits_with_1_and_one_sentence(small_store, tmp_path, capsys):
    arguments = ["--activations", str(small_store.path), "--site", "blocks.0.hook_resid_post"]
    arguments += ["--d-sae", "32", "--k", "4", "--n-tokens", "2000", "--batch-size", "100"]
    out = tmp_path / "run"
    assert main(["train", "topk", *arguments, "--lr", "1e6", "--out", str(out)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"saelab train: The training at {out} diverged at step")
    metrics = (out / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["fvu"] < LIMIT for line in metrics)


def test_a_training_that_ends_worse_than_a_constant_says_so(small_store, tmp_path, capsys):
    train(config_of(small_store, lr=3.0, clip_norm=None), out=tmp_path / "run")
    assert "and a constant has 1: nothing was learned" in capsys.readouterr().err


def test_an_sae_that_starts_badly_is_given_more_room():
    """A wide dense code of FVU 100 before its first step."""
    sae = TopKConfig(d_sae=8, k=8).build(4, torch.Generator().manual_seed(0))
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        sae.W_enc.mul_(10)
    watch = Watch.start(sae, x, x, 4.0)
    before = watch.fvu(sae)
    assert before > 10
    assert watch.limit == LIMIT * before
    assert watch.problem(sae) is None
    with torch.no_grad():
        sae.W_enc[0, 0] = float("nan")
    assert watch.problem(sae) == "weights that are not finite"

"""The learning rate's course."""

from pathlib import Path

from saelab.sae.topk import TopKConfig
from saelab.training.config import TrainConfig
from saelab.training.schedule import learning_rate


def config(**options) -> TrainConfig:
    values = {"n_tokens": 1000, "batch_size": 1, "lr": 1.0, "warmup_steps": 100} | options
    return TrainConfig(sae=TopKConfig(d_sae=8, k=2), activations=Path("store"), site="x", **values)


def test_it_rises_linearly_to_the_peak_during_warmup():
    assert learning_rate(config(), 0) == 0.01
    assert learning_rate(config(), 49) == 0.5
    assert learning_rate(config(), 99) == 1.0


def test_it_falls_linearly_over_the_last_part_and_never_reaches_zero():
    assert learning_rate(config(), 800) == 1.0
    assert learning_rate(config(), 900) == 0.5
    assert learning_rate(config(), 999) == 0.005


def test_without_decay_it_stays_at_the_peak():
    assert learning_rate(config(decay_fraction=0.0), 999) == 1.0


def test_a_short_run_warms_up_over_a_twentieth():
    assert config(warmup_steps=None).n_warmup == 50
    assert config(warmup_steps=None, n_tokens=10**6).n_warmup == 1000


def test_steps_are_rounded_up_to_whole_batches():
    assert config(n_tokens=1001, batch_size=100).n_steps == 11

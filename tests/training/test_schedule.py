"""The learning rate's course."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from saelab.config import UsageError
from saelab.sae.topk import TopKConfig
from saelab.training.config import TrainConfig
from saelab.training.schedule import learning_rate


def config(**options) -> TrainConfig:
    values: dict[str, Any] = {
        "n_tokens": 1000,
        "batch_size": 1,
        "lr": 1.0,
        "warmup_steps": 100,
    } | options
    return TrainConfig(
        sae=TopKConfig(d_sae=8, k=2), activations=Path("store"), site="x", **(values | options)
    )


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


def rates(**options):
    given = config(**options)
    return [learning_rate(given, step) for step in range(given.n_steps)]


def closed_form(schedule, final, step):
    """The rate after a warm-up of 100 steps of 1000, for step 100 and later."""
    left = (1000 - step) / 900
    share = {"linear": left, "cosine": (1 + math.cos(math.pi * (1 - left))) / 2, "constant": 1.0}
    return final + (1 - final) * share[schedule]


@pytest.mark.parametrize("final", [0.0, 0.1])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_each_schedule_is_its_formula(schedule, final):
    if schedule == "constant":
        final = 0.0
    found = rates(schedule=schedule, final_lr_fraction=final)
    assert found[:100] == [(step + 1) / 100 for step in range(100)]
    for step in range(100, 1000):
        assert found[step] == pytest.approx(closed_form(schedule, final, step), abs=1e-12)
    assert min(found) > 0


def test_a_rate_falls_to_its_final_fraction_and_not_below():
    found = rates(final_lr_fraction=0.25)
    assert found[:801] == rates()[:801]
    assert found[900] == pytest.approx(0.25 + 0.75 * 0.5)
    assert found[-1] == pytest.approx(0.25 + 0.75 / 200)


def test_a_cosine_of_a_cosine_is_smooth_and_a_linear_one_falls_evenly():
    cosine, linear = rates(schedule="cosine")[100:], rates(schedule="linear")[100:]
    assert max(abs(a - b) for a, b in pairwise(cosine)) < 0.002
    falls = [a - b for a, b in pairwise(linear)]
    assert falls == pytest.approx([1 / 900] * 899)


def test_the_warm_up_of_gemma_scope_is_half_a_wave_from_a_tenth():
    """arXiv 2408.05147, section 3.2."""
    found = rates(warmup_shape="cosine", initial_lr_fraction=0.1, schedule="constant")
    for step in range(100):
        wave = (1 - math.cos(math.pi * (step + 1) / 100)) / 2
        assert found[step] == pytest.approx(0.1 + 0.9 * wave)
    assert found[99:] == [1.0] * 901


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"schedule": "cosine", "decay_fraction": 0.3}, "decay_fraction=0.3 is for --schedule wsd"),
        ({"schedule": "constant", "final_lr_fraction": 0.1}, "final_lr_fraction=0.1 is for a rate"),
        ({"schedule": "linear", "warmup_steps": 1000}, "warmup_steps=1000 leaves none"),
    ],
)
def test_what_a_schedule_would_not_read_is_refused(options, named):
    with pytest.raises(UsageError, match=named):
        config(**options).check()


def test_a_short_run_warms_up_over_a_twentieth():
    assert config(warmup_steps=None).n_warmup == 50
    assert config(warmup_steps=None, n_tokens=10**6).n_warmup == 1000


def test_steps_are_rounded_up_to_whole_batches():
    assert config(n_tokens=1001, batch_size=100).n_steps == 11

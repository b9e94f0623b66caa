"""Filters are compared with no filter, with intervals that cover the truth as often as they say."""

import numpy as np
import pytest

from saelab.analysis.steering.success_table import (
    LatentSuccess,
    equal_number,
    filter_table,
    ratio_interval,
)


def latent(output: float, success: float, found: float | None = None) -> LatentSuccess:
    return LatentSuccess(0, 1, found, output, 1.0, success, 0.5, 2.0)


def test_a_filter_is_compared_with_all_latents():
    latents = [latent(0.0, 1.0), latent(0.02, 2.0, 0.95), latent(0.95, 6.0)]
    table = filter_table(latents)
    rows = {(row.score, row.threshold): row for row in table if row.share is None}
    everything = rows["none", None]
    assert (everything.n, everything.success, everything.gain) == (3, 3.0, 2.5)
    assert (everything.ratio, everything.low, everything.high) == (1.0, 1.0, 1.0)
    assert (rows["output", 0.01].n, rows["output", 0.01].success) == (2, 4.0)
    assert rows["output", 0.01].ratio == pytest.approx(4 / 3)
    assert (rows["output", 0.9].n, rows["output", 0.9].ratio) == (1, 2.0)
    # A latent without an input score passes no filter on it.
    assert rows["input", 0.9].n == 1
    assert rows["input", 0.0001].n == 1


def test_the_gain_counts_what_the_plain_model_does_not_say():
    latents = [latent(0.0, 0.5), latent(0.6, 1.5)]
    row = {(r.score, r.threshold): r for r in filter_table(latents)}["output", 0.5]
    # Success 1.5 of a mean of 1; without the plain model's 0.5 it is 1 of 0.5.
    assert (row.ratio, row.gain_ratio) == (1.5, 2.0)


def test_random_directions_that_pass_stand_beside_the_latents():
    table = filter_table([latent(0.6, 1.0, 0.6)], np.array([0.0, 0.05, 0.2, 0.7]))
    chance = {(row.score, row.threshold): row.chance for row in table if row.share is None}
    assert [chance["output", t] for t in (0.01, 0.1, 0.5)] == [0.75, 0.5, 0.25]
    assert chance["none", None] is None
    assert chance["input", 0.5] is None


def test_random_directions_are_steered_with_and_compared_with_all_latents():
    latents = [latent(0.6, 2.0), latent(0.0, 4.0)]
    directions = [latent(0.02, 1.0), latent(0.0, 0.5), latent(0.0, 0.75)]
    table = filter_table(latents, None, directions)
    rows = {row.threshold: row for row in table if row.score == "random"}
    assert (rows[None].n, rows[None].success, rows[None].gain) == (3, 0.75, 0.25)
    assert (rows[None].ratio, rows[None].gain_ratio) == (0.25, 0.1)
    assert rows[None].low <= 0.25 <= rows[None].high
    assert (rows[0.01].n, rows[0.01].ratio) == (1, pytest.approx(1 / 3))
    assert 0.1 not in rows


def test_as_many_random_latents_have_the_factors_that_chance_gives():
    values = np.random.default_rng(3).exponential(size=400)
    assert equal_number(values, 400) == (pytest.approx(1), pytest.approx(1))
    low, high = equal_number(values, 25)
    # The standard error of a mean of 25 of them, as a share of the mean of all.
    spread = 1.96 * values.std() / 5 * (375 / 399) ** 0.5 / values.mean()
    assert (high - low) / 2 == pytest.approx(spread, rel=0.1)


def test_filters_that_keep_nothing_are_left_out():
    rows = [row for row in filter_table([latent(0.0, 1.0)]) if row.share is None]
    assert [row.threshold for row in rows] == [None]


def test_a_filter_by_share_keeps_the_best_of_those_with_a_score():
    latents = [latent(i / 10, float(i), i / 10 if i else None) for i in range(11)]
    rows = {(row.score, row.share): row for row in filter_table(latents) if row.share}
    # Of eleven outputs 0, 0.1, ... 1 the best fifth are 0.8, 0.9 and 1.
    assert rows["output", 0.2].threshold == pytest.approx(0.8)
    assert (rows["output", 0.2].n, rows["output", 0.2].success) == (3, 9.0)
    assert rows["input", 0.4].n == 4


def test_the_interval_covers_the_true_ratio_nineteen_times_in_twenty():
    generator = np.random.default_rng(1)
    # Half of the latents are kept; their mean is 2, the others' is 1: the true ratio is 4/3.
    covered = 0
    for _ in range(60):
        kept = generator.random(60) < 0.5
        success = generator.exponential(np.where(kept, 2.0, 1.0))
        _, low, high = ratio_interval(success, kept)
        covered += low <= 4 / 3 <= high
    # Binomial(60, 0.95) is below 51 once in 500 times.
    assert covered >= 51


def test_where_all_latents_together_gain_nothing_there_is_no_ratio():
    assert ratio_interval(np.array([1.0, -2.0]), np.array([True, False])) == (0.0, 0.0, 0.0)


def test_where_nothing_succeeds_there_is_no_ratio():
    assert ratio_interval(np.zeros(5), np.ones(5, dtype=bool)) == (0.0, 0.0, 0.0)

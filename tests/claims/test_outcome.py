"""Intervals and verdicts."""

import numpy as np
import pytest

from saelab.claims.claim import Claim, claims
from saelab.claims.outcome import (
    RANDOM_DIRECTIONS,
    RANDOM_LATENTS,
    Estimate,
    Outcome,
    over_seeds,
    ratios,
)


@pytest.mark.parametrize("n", [2, 5, 10, 16])
def test_the_interval_over_seeds_covers_the_mean_in_95_of_100_cases(n):
    drawn = np.random.default_rng(0).normal(3, 2, size=(4000, n))
    found = [over_seeds(list(map(float, values))) for values in drawn]
    share = np.mean([e.low <= 3 <= e.high for e in found])
    # Three standard errors of a share of 4,000.
    assert abs(share - 0.95) < 3 * (0.95 * 0.05 / 4000) ** 0.5


def test_one_seed_has_no_interval_and_its_value_decides():
    found = over_seeds([2.0])
    assert (found.low, found.high, found.text()) == (2.0, 2.0, "2")
    assert found.below(2.5)
    assert not found.above(2.0)


def test_a_limit_within_the_interval_is_neither_above_nor_below():
    found = over_seeds([1.0, 2.0, 3.0])
    assert found.low < 2.5 < found.high
    assert not found.below(2.5)
    assert not found.above(2.5)


def test_the_verdict_follows_the_parts_and_names_those_that_do_not_hold():
    one = {"x": over_seeds([1.0])}
    assert Outcome(one, {"a": True, "b": True}).verdict == "reproduced"
    assert Outcome(one, {"a": False}).verdict == "not reproduced"
    part = Outcome(one, {"a": True, "less b": False}, reason="Rows are few.")
    assert part.verdict == "in part"
    assert part.why() == "Not shown: less b. Rows are few."


def test_no_figure_is_nan():
    with pytest.raises(ValueError, match="not finite"):
        over_seeds([float("nan"), 1.0])


def test_there_is_no_ratio_to_what_is_not_positive():
    assert ratios([1.0, -1.0], [2.0, 4.0]) == [0.5, -0.25]
    with pytest.raises(ValueError, match="There is no ratio"):
        ratios([1.0, 1.0], [2.0, -0.1])


def test_a_claim_that_intervenes_needs_both_controls(setting):
    figure = Estimate(1, 1, 1, 1)

    def claim(**controls):
        found = Outcome({"x": figure}, {"a": True}, controls=controls)
        return Claim("c", "2510.00000", "s", "f", "o", lambda _: found, intervenes=True)

    both = {RANDOM_DIRECTIONS: figure, RANDOM_LATENTS: figure}
    assert claim(**both).outcome(setting).controls == both
    with pytest.raises(ValueError, match=RANDOM_LATENTS):
        claim(**{RANDOM_DIRECTIONS: figure}).outcome(setting)


def test_every_built_in_claim_is_of_a_paper_and_named_as_in_the_list():
    for name, claim in claims().items():
        assert claim.name == name
        year, _, number = claim.paper.partition(".")
        assert year.isdigit()
        assert number.isdigit()
        assert claim.says.endswith(".")

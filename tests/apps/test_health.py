from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from feature_browser.draw.charts import (
    MOST_POINTS,
    Curve,
    cosine_chart,
    density_chart,
    line_chart,
    telling,
)
from feature_browser.pages.health.densities import ALIKE, Densities, evaluated_densities, twins
from hypothesis import given, settings
from hypothesis import strategies as st


class Arrays(dict[str, np.ndarray]):
    """What `twins` asks of a features file."""


def test_dead_and_dense_latents_are_found_densest_first():
    found = Densities(np.array([0.0, 0.2, 0.05, 0.9, 0.1, 0.0]), 1000, "x")
    assert found.dead.tolist() == [0, 5]
    assert found.dense.tolist() == [3, 1]


@settings(max_examples=30, deadline=None)
@given(fired=st.lists(st.integers(0, 1234), min_size=1, max_size=50))
def test_the_histogram_counts_every_living_latent_in_its_own_bin(fired: list[int]):
    n = 1234
    density = np.array(fired) / n
    edges, counts = Densities(density, n, "x").histogram()
    assert sum(counts) == np.count_nonzero(fired)
    expected = [
        sum(low <= np.log10(d) and (np.log10(d) < high or high == edges[-1])
            for d in density if d > 0)
        for low, high in pairwise(edges)
    ]  # fmt: skip
    assert counts == expected
    assert edges[0] <= np.log10(1 / n)


@pytest.mark.parametrize("values", [{}, {"frequency": 3, "n_tokens": 5}, {"frequency": [0.1]}])
def test_a_density_file_that_does_not_say_is_none(values: dict[str, Any]):
    assert evaluated_densities(values) is None


def test_a_pair_is_listed_once_even_if_only_one_list_has_it():
    file = Arrays()
    file["neighbours/latents"] = np.array([[1, 2], [0, 3], [0, 1], [2, -1]])
    file["neighbours/cosine"] = np.array([[0.99, 0.97], [0.99, -0.98], [0.5, 0.2], [0.1, 0.99]])
    found = twins(file, signed=False)  # pyright: ignore[reportArgumentType]
    assert list(zip(found.latent.tolist(), found.other.tolist(), strict=True)) == [(0, 1), (0, 2)]
    assert (found.cosine > ALIKE).all()
    both = twins(file, signed=True)  # pyright: ignore[reportArgumentType]
    assert (1, 3) in set(zip(both.latent.tolist(), both.other.tolist(), strict=True))


def test_a_curve_leaves_out_what_is_not_finite_and_names_its_ends():
    x = np.array([100.0, 200.0, 300.0, 400.0])
    drawn = line_chart(Curve("FVU", x, np.array([1.0, np.nan, 0.5, 0.02]), log=True))
    assert 'data-says="100|1.00;300|0.500;400|0.0200"' in drawn
    assert drawn.split('<polyline points="')[1].split('"')[0].count(",") == 3
    assert "FVU from 1.00 to 0.0200 over 400 tokens" in drawn


@pytest.mark.parametrize("y", [[0.0] * 3, [5.0] * 3, [1e-9, 2e-9, 3e-9], [-3.0, 0.0, 2.0]])
def test_flat_tiny_and_negative_curves_are_drawn(y: list[float]):
    drawn = line_chart(Curve("x", np.arange(3.0), np.array(y), log=True))
    assert "<polyline" in drawn
    assert "nan" not in drawn


def test_a_single_step_is_drawn_and_nothing_logged_is_said():
    assert "<polyline" in line_chart(Curve("x", np.array([1.0]), np.array([2.0])))
    assert "nothing logged" in line_chart(Curve("x", np.zeros(0), np.zeros(0)))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 3000), at=st.floats(0, 1))
def test_a_long_curve_is_thinned_to_few_points_that_keep_its_ends_and_spikes(n: int, at: float):
    y = np.linspace(1.0, 2.0, n)
    spike = round(at * (n - 1))
    y[spike] = 9.0
    kept = telling(y)
    assert len(kept) <= MOST_POINTS + 2
    assert {0, spike, n - 1} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()


def test_a_curve_that_was_logged_late_has_the_axis_of_the_others():
    x = np.array([100.0, 200.0, 300.0])
    drawn = line_chart(Curve("late", x, np.array([np.nan, 1.0, 2.0])))
    whole = line_chart(Curve("whole", x, x))
    points = [c.split('<polyline points="')[1].split('"')[0].split(" ") for c in (drawn, whole)]
    assert [p.split(",")[0] for p in points[0]] == [p.split(",")[0] for p in points[1][1:]]


def test_a_long_curve_says_what_was_logged():
    x = np.arange(50_000.0)
    drawn = line_chart(Curve("x", x, x))
    assert len(drawn) < 30_000
    assert drawn.split('data-says="')[1].startswith("0|0.00;")


def test_bars_are_one_for_each_filled_bin():
    assert density_chart([-2, -1, 0], [3, 0], 0.1).count("<rect") == 1
    assert cosine_chart([0, 0.5, 1], [3, 4], 0.7).count("<rect") == 2
    assert density_chart([-2, -1, 0], [0, 0], 0.1).count("<rect") == 0

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from feature_browser.draw.charts import cosine_chart, density_chart
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
    found = twins(file, signed=False)  # pyrefly: ignore[bad-argument-type]
    assert list(zip(found.latent.tolist(), found.other.tolist(), strict=True)) == [(0, 1), (0, 2)]
    assert (found.cosine > ALIKE).all()
    both = twins(file, signed=True)  # pyrefly: ignore[bad-argument-type]
    assert (1, 3) in set(zip(both.latent.tolist(), both.other.tolist(), strict=True))


def test_bars_are_one_for_each_filled_bin():
    assert density_chart([-2, -1, 0], [3, 0], 0.1).count("<rect") == 1
    assert cosine_chart([0, 0.5, 1], [3, 4], 0.7).count("<rect") == 2
    assert density_chart([-2, -1, 0], [0, 0], 0.1).count("<rect") == 0

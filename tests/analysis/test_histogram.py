"""Histograms with exact edges, against numpy's."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from saelab.analysis.histogram import BINS_PER_SIDE, edges, histograms, one_sided, ranges


@given(seed=st.integers(0, 10**6))
def test_counts_equal_one_histogram_of_each_latent(seed):
    draw = np.random.default_rng(seed)
    latent = draw.integers(0, 3, 200)
    value = (draw.normal(size=200) * 10.0 ** draw.integers(-3, 3, 200)).astype(np.float32)
    largest = np.array([np.abs(value[latent == j]).max() for j in range(3)])
    span = ranges(largest)
    counts = histograms(latent, value, span)
    for j in range(3):
        mine = value[latent == j].astype(np.float64)
        expected, _ = np.histogram(mine, edges(float(span[j])))
        assert (counts[j] == expected).all()


@given(st.floats(2.0**-10, 2.0**60, exclude_min=True))
def test_the_largest_value_lies_in_the_outer_half(largest):
    span = float(ranges(np.array([largest]))[0])
    assert span / 2 <= largest < span


def test_a_silent_latent_has_a_range_and_no_counts():
    span = ranges(np.zeros(1))
    assert span[0] == 2.0**-10
    assert histograms(np.zeros(0, int), np.zeros(0), span).sum() == 0


def test_an_empty_negative_side_is_left_out_and_the_edges_know_it():
    counts = np.zeros((2, 2 * BINS_PER_SIDE), dtype=np.uint32)
    counts[0, -1] = 4
    assert one_sided(counts).shape == (2, BINS_PER_SIDE)
    assert edges(8.0, BINS_PER_SIDE)[[0, -1]].tolist() == [0.0, 8.0]
    counts[1, 3] = 1
    assert one_sided(counts).shape == counts.shape

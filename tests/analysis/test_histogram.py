"""Histograms whose range doubles, against counting everything at the end."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from saelab.analysis.histogram import BINS_PER_SIDE, LatentHistograms, edges


@given(seed=st.integers(0, 10**6), batches=st.integers(1, 5))
def test_counts_equal_one_histogram_over_the_final_range(seed, batches):
    draw = np.random.default_rng(seed)
    latent = draw.integers(0, 3, 200)
    value = (draw.normal(size=200) * 10.0 ** draw.integers(-3, 3, 200)).astype(np.float32)
    histograms = LatentHistograms(3)
    for part in np.array_split(np.arange(200), batches):
        histograms.update(latent[part], value[part])
    for j in range(3):
        mine = value[latent == j].astype(np.float64)
        expected, _ = np.histogram(mine, edges(float(histograms.range[j])))
        assert (histograms.counts[j] == expected).all()


def test_the_largest_value_lies_in_the_outer_half():
    histograms = LatentHistograms(1)
    histograms.update(np.array([0]), np.array([5.0], dtype=np.float32))
    assert histograms.range[0] / 2 <= 5.0 < histograms.range[0]
    assert histograms.counts[0, : BINS_PER_SIDE + BINS_PER_SIDE // 2].sum() == 0

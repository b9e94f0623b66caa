"""Moments and strata against brute force on the dense codes."""

import numpy as np
import pytest
from analysis.features.cases import random_case
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.analysis.features.statistics import Strata, figures


def figures_of(firings, n_strata):
    return figures(firings, Strata.of(firings, n_strata))


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), n_strata=st.integers(1, 6), rate=st.sampled_from([0.03, 0.4]))
def test_counts_moments_and_strata_equal_brute_force(tmp_path_factory, seed, n_strata, rate):
    case = random_case(tmp_path_factory.mktemp("codes"), seed, rate=rate)
    arrays = figures_of(case.codes.firings(0, 6), n_strata)
    for latent, values in enumerate(case.rows.T.astype(np.float64)):
        fired = np.abs(values[values != 0])
        assert arrays["latent/n_fired"][latent] == len(fired)
        assert arrays["latent/n_negative"][latent] == (values < 0).sum()
        assert arrays["latent/max"][latent] == fired.max(initial=0)
        assert arrays["histogram/counts"][latent].sum() == len(fired)
        edges = arrays["strata/edges"][latent]
        population = arrays["strata/population"][latent]
        assert population.sum() == len(fired)
        for stratum in range(n_strata):
            low, high = edges[stratum], edges[stratum + 1]
            last = stratum == n_strata - 1
            inside = (fired >= low) & ((fired < high) | (last & (fired <= high)))
            assert population[stratum] == inside.sum()
        if not len(fired):
            continue
        ordered = np.sort(fired)
        ranks = [min(len(fired) - 1, len(fired) * s // n_strata) for s in range(n_strata + 1)]
        assert edges.tolist() == ordered[ranks].tolist()
        second = (values**2).mean()
        assert arrays["latent/mean"][latent] == pytest.approx(fired.mean(), rel=1e-5)
        assert arrays["latent/mean_square"][latent] == pytest.approx(second, rel=1e-5)
        skew, kurtosis = (values**3).mean() / second**1.5, (values**4).mean() / second**2
        assert arrays["latent/skew"][latent] == pytest.approx(skew, rel=1e-5, abs=1e-6)
        assert arrays["latent/kurtosis"][latent] == pytest.approx(kurtosis, rel=1e-5)


def test_density_times_the_mean_when_on_is_the_mean_over_all_tokens(tmp_path):
    case = random_case(tmp_path, 2)
    arrays = figures_of(case.codes.firings(0, 6), 5)
    density = arrays["latent/n_fired"] / len(case.rows)
    assert density * arrays["latent/mean"] == pytest.approx(np.abs(case.rows).mean(axis=0))


def test_without_ties_the_strata_have_equal_populations(tmp_path):
    case = random_case(tmp_path, 4, rate=0.6)
    firings = case.codes.firings(0, 6)
    distinct = np.random.default_rng(0).permutation(len(firings)).astype(np.float32) + 1
    firings.value[:] = distinct
    population = figures_of(firings, 5)["strata/population"].astype(int)
    assert (population.max(axis=1) - population.min(axis=1) <= 1).all()

"""Latents that fire together, against the dense product of the codes with themselves."""

import numpy as np
import pytest
from analysis.features.cases import random_case, write_case
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.analysis.features import coactivation
from saelab.analysis.features.coactivation import coactive


def jaccard_matrix(rows: np.ndarray) -> np.ndarray:
    fires = (rows != 0).astype(np.float64)
    both = fires.T @ fires
    own = np.diag(both)
    either = own[:, None] + own[None, :] - both
    out = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
    np.fill_diagonal(out, 0)
    return out


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), first=st.integers(0, 9))
def test_up_to_the_limit_the_jaccard_index_is_exact(tmp_path_factory, seed, first):
    case = random_case(tmp_path_factory.mktemp("codes"), seed, d_sae=14)
    arrays = coactive(case.codes, case.codes.firings(first, 14), seed=0)
    expected = jaccard_matrix(case.rows)[first:]
    for latent, shares in enumerate(expected):
        found, values = arrays["coactive/latents"][latent], arrays["coactive/jaccard"][latent]
        best = np.sort(shares)[::-1][:8]
        assert np.allclose(values, best, atol=1e-6)
        assert np.allclose(shares[found[found >= 0]], values[found >= 0], atol=1e-6)
        assert (found >= 0).sum() == min(8, (shares > 0).sum())


@pytest.mark.parametrize(("name", "size"), [("EVENTS_AT_ONCE", 9), ("PAIRS", 3 * 14)])
def test_the_pieces_it_works_in_change_nothing(tmp_path, monkeypatch, name, size):
    case = random_case(tmp_path, 0, d_sae=14)
    firings = case.codes.firings(0, 14)
    whole = coactive(case.codes, firings, seed=0)
    monkeypatch.setattr(coactivation, name, size)
    for array, values in coactive(case.codes, firings, seed=0).items():
        assert np.array_equal(values, whole[array])


def test_beyond_the_limit_it_is_an_estimate_within_the_stated_error(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    dense = (draw.random((40, 50, 4)) < [0.6, 0.3, 0.5, 0.1]).astype(np.float32)
    dense[:, :, 3] = dense[:, :, 0] * (draw.random((40, 50)) < 0.5)
    mask = np.ones((40, 50), dtype=bool)
    case = write_case(tmp_path, dense, np.zeros_like(dense), mask, np.zeros((40, 50), int))
    monkeypatch.setattr(coactivation, "MOST_FIRINGS", 200)
    arrays = coactive(case.codes, case.codes.firings(0, 4), seed=0)
    expected = jaccard_matrix(case.rows)
    for latent in range(4):
        found = arrays["coactive/latents"][latent]
        found = found[found >= 0]
        assert sorted(found) == [other for other in range(4) if other != latent]
        values = arrays["coactive/jaccard"][latent][: len(found)]
        # Four standard errors of a share estimated on 200 firings.
        assert np.abs(values - expected[latent, found]).max() < 4 * 0.5 / np.sqrt(200)
    assert arrays["coactive/latents"][3, 0] == 0

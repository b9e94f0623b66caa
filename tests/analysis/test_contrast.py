"""Latents that tell texts apart: against all pairs, on planted firings, and by shuffled texts."""

import numpy as np
import pytest

from saelab.analysis.contrast import Fired, contrast, largest
from saelab.config import UsageError

TELLING, SILENT_IN_FIRST = 3, 8


def planted(n: int, draw: np.random.Generator) -> tuple[list[Fired], np.ndarray]:
    """`n` texts of each side with chance firings; latent 3 fires in all first, 8 in all others."""
    is_first = np.arange(2 * n) < n
    texts = []
    for first in is_first:
        latents = np.unique(draw.integers(10, 60, 8))
        own = TELLING if first else SILENT_IN_FIRST
        latents = np.array([own, *latents])
        # Equal values make ties.
        texts.append((latents, draw.integers(1, 4, len(latents)).astype(np.float64)))
    return texts, is_first


def test_the_planted_latents_come_first_and_every_auroc_is_that_of_all_pairs():
    texts, is_first = planted(12, np.random.default_rng(0))
    found = contrast(texts, is_first)
    assert set(found.latent[:2].tolist()) == {TELLING, SILENT_IN_FIRST}
    dense = np.zeros((24, 60))
    for row, (latents, values) in enumerate(texts):
        dense[row, latents] = values
    a, b = dense[:12, None], dense[None, 12:]
    expected = ((a > b) + 0.5 * (a == b)).mean(axis=(0, 1))
    np.testing.assert_allclose(found.auroc, expected[found.latent])
    np.testing.assert_allclose(found.first, dense[:12].mean(0)[found.latent])
    np.testing.assert_array_equal(found.n_second, (dense[12:] > 0).sum(0)[found.latent])
    # The planted ones stand out of what chance brings about, and chance alone does not.
    assert (np.abs(found.auroc - 0.5) > found.chance).sum() == 2


def test_pieces_of_the_latents_give_what_all_at_once_give(monkeypatch: pytest.MonkeyPatch):
    texts, is_first = planted(6, np.random.default_rng(1))
    whole = contrast(texts, is_first)
    monkeypatch.setattr("saelab.analysis.contrast.CELLS_AT_ONCE", 7 * 12**2)
    pieces = contrast(texts, is_first)
    np.testing.assert_array_equal(pieces.latent, whole.latent)
    assert pieces.chance == whole.chance


def test_a_side_of_one_text_is_refused_and_silence_finds_nothing():
    nothing = (np.zeros(0, np.int64), np.zeros(0))
    with pytest.raises(UsageError, match="Got 1 and 3 texts; give at least 2"):
        contrast([nothing] * 4, np.arange(4) < 1)
    assert len(contrast([nothing] * 4, np.arange(4) < 2)) == 0


def test_a_latents_largest_firing_stands_for_it_without_its_sign():
    latent, value = largest(np.array([4, 2, 4, 2]), np.array([1.0, -3.0, 2.0, 1.0]))
    assert latent.tolist() == [2, 4]
    assert value.tolist() == [3.0, 2.0]

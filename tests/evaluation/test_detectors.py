"""Latents as detectors: the sparse sums against brute force over dense codes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.evaluation.detectors import score_label, sort_events
from saelab.evaluation.probe import auroc
from saelab.types import SparseCodes


def random_codes(seed: int, rows: int, d_sae: int, k: int) -> SparseCodes:
    generator = torch.Generator().manual_seed(seed)
    indices = torch.rand(rows, d_sae, generator=generator).topk(k, dim=1).indices
    # Few distinct values, so that ties and zeros occur.
    values = torch.randint(-3, 4, (rows, k), generator=generator).float()
    return SparseCodes(values, indices, d_sae)


def brute_force(score: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """Best F1 over thresholds above zero, and AUROC by counting pairs."""
    f1 = max(
        (
            2 * (label & (score >= t)).sum() / ((score >= t).sum() + label.sum())
            for t in np.unique(score[score > 0])
        ),
    )
    positive, negative = score[label][:, None], score[~label][None, :]
    wins = (positive > negative).mean() + 0.5 * (positive == negative).mean()
    return f1, wins


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), rows=st.integers(3, 30), k=st.integers(1, 5))
def test_f1_and_auroc_equal_brute_force_for_every_detector(seed, rows, k):
    codes = random_codes(seed, rows, 6, k)
    label = np.random.default_rng(seed).random(rows) < 0.4
    label[:2] = [True, False]
    events = sort_events(codes)
    scores = score_label(events, label)
    dense = codes.dense().numpy()
    for position in range(len(events.detectors)):
        latent, sign = events.latent(position)
        score = np.maximum(sign * dense[:, latent], 0)
        f1, area = brute_force(score, label)
        assert scores.f1[position] == pytest.approx(f1)
        assert scores.auroc[position] == pytest.approx(area)
        answers = score >= scores.threshold[position]
        achieved = 2 * (label & answers).sum() / (answers.sum() + label.sum())
        assert achieved == pytest.approx(f1)


def test_silent_latents_are_no_detectors():
    codes = SparseCodes(torch.zeros(3, 1), torch.zeros(3, 1, dtype=torch.int64), 4)
    assert len(sort_events(codes).detectors) == 0


@given(seed=st.integers(0, 10**6))
def test_dense_auroc_counts_ties_as_one_half(seed):
    draw = np.random.default_rng(seed)
    score, label = draw.integers(0, 4, 25), draw.random(25) < 0.5
    label[:2] = [True, False]
    positive, negative = score[label][:, None], score[~label][None, :]
    expected = (positive > negative).mean() + 0.5 * (positive == negative).mean()
    found = auroc(torch.from_numpy(score).float(), torch.from_numpy(label))
    assert found == pytest.approx(expected)

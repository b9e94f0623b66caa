"""Ground-truth recovery on codes whose truth is planted."""

import numpy as np
import pytest
import torch
from evaluation.cases import rows_of

from saelab.evaluation.probe import auroc, fit_probes
from saelab.evaluation.recovery import recover
from saelab.evaluation.rows import Rows
from saelab.types import SparseCodes


def planted(noise: float, rows: int = 2000) -> tuple[Rows, np.ndarray]:
    """Latent 3 fires on label 0; latent 5, negatively, on label 1; latent 7 at random."""
    draw = np.random.default_rng(0)
    labels = draw.random((rows, 3)) < [0.2, 0.1, 0.001]
    signal = np.stack([1.0 * labels[:, 0], -2.0 * labels[:, 1], draw.random(rows)], axis=1)
    signal[:, 0] += noise * (draw.random(rows) < 0.5)
    x = np.concatenate([signal, draw.normal(size=(rows, 2))], axis=1)
    indices = torch.tensor([[3, 5, 7]]).expand(rows, 3)
    codes = SparseCodes(torch.from_numpy(signal).float(), indices, 16)
    return rows_of(torch.from_numpy(x).float(), codes, torch.from_numpy(labels), NAMES), labels


NAMES = ("first", "second", "rare")


def test_planted_latents_are_found_with_their_sign_and_perfect_scores():
    data, _ = planted(noise=0.0)
    first, second = recover(data).features
    assert (first.latent, first.sign, first.f1, first.auroc) == (3, 1, 1.0, 1.0)
    assert (second.latent, second.sign, second.f1) == (5, -1, 1.0)
    assert first.probe_auroc == 1.0


def test_a_label_too_rare_to_score_is_reported_not_scored():
    data, _ = planted(noise=0.0)
    result = recover(data)
    assert result.too_rare == ["rare"]
    assert [f.label for f in result.features] == ["first", "second"]


def test_each_latent_is_matched_with_its_label():
    data, _ = planted(noise=0.0)
    latents = recover(data).latents
    assert (latents.label[3], latents.label[5]) == ("first", "second")
    assert latents.label[0] is None
    assert latents.f1[7] < 0.5


def test_scores_are_those_of_the_half_the_latent_was_not_chosen_on():
    data, labels = planted(noise=1.0)
    first = recover(data).features[0]
    test = np.arange(len(labels)) % 2 == 1
    value = data.codes.values[:, 0].numpy()
    answers, truth = value[test] >= first.threshold, labels[test, 0]
    expected = 2 * (answers & truth).sum() / (answers.sum() + truth.sum())
    assert first.f1 == pytest.approx(expected)


def test_the_probe_separates_what_is_linearly_there_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 6, generator=generator)
    labels = torch.stack([x[:, 0] - x[:, 1] > 0.5, torch.rand(3000, generator=generator) < 0.3], 1)
    weights, bias = fit_probes(x[:1500], labels[:1500])
    scores = x[1500:] @ weights + bias
    assert auroc(scores[:, 0], labels[1500:, 0]) > 0.99
    assert abs(auroc(scores[:, 1], labels[1500:, 1]) - 0.5) < 0.06

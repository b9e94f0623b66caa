"""Sparse probing on codes whose truth is planted, and its ranking against brute force."""

import dataclasses

import pytest
import torch
from evaluation.cases import flipped, measured, permuted, random_dense, reason, rows_of, sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.evaluation.probe import auroc, best_threshold, f1_score, score_probe
from saelab.evaluation.probing import best_latents, code_moments, moments, rank, sparse_probing
from saelab.evaluation.rows import Rows

NAMES = ("exact", "either", "rare", "hidden")


def planted(n=1200, *, signed=True) -> Rows:
    """Latent 3 is `exact`, negatively if signed; 5 and 6 share `either`; the others are noise."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.rand(n, 4, generator=draw) < torch.tensor([0.3, 0.4, 0.001, 0.3])
    dense = random_dense(n, 12, seed=1, signed=signed)
    half = torch.rand(n, generator=draw) < 0.5
    dense[:, 3] = labels[:, 0] * (-2.0 if signed else 2.0)
    dense[:, 5], dense[:, 6] = labels[:, 1] * half * 3.0, labels[:, 1] * ~half * 3.0
    x = torch.cat([labels.float(), torch.randn(n, 4, generator=draw)], dim=1)
    return rows_of(x, sparse(dense), labels, NAMES)


def test_planted_labels_are_found_with_as_many_latents_as_they_have():
    found = measured(sparse_probing(planted()))
    by_label = {label.label: label for label in found.labels}
    assert found.too_rare == ["rare"]
    exact, either, hidden = (by_label[name] for name in ("exact", "either", "hidden"))
    assert exact.latents[0] == 3
    assert exact.by_latents[0].f1 == 1
    # Further latents are noise; a threshold fitted with it may cost a row or two elsewhere.
    assert min(score.f1 for score in exact.by_latents) > 0.98
    assert set(either.latents[:2]) == {5, 6}
    assert either.by_latents[0].f1 < 0.85
    assert either.by_latents[1].f1 == 1
    assert either.by_latents[2].f1 > 0.98
    # What no latent knows, chance finds at 0.5; the activations know it all the same.
    assert abs(hidden.by_latents[2].auroc - 0.5) < 0.1
    assert hidden.dense.f1 > 0.98
    assert (hidden.channels[0], hidden.by_channels[0].f1) == (3, 1)


def test_an_oracle_with_one_latent_a_label_does_as_well_as_the_probe_of_everything():
    """P7.13: k = 1 probing equals the full probe."""
    rows = planted()
    assert rows.labels is not None
    oracle = dataclasses.replace(rows, codes=sparse(rows.labels.float() * 2).rectangular())
    found = measured(sparse_probing(oracle))
    for label in found.labels:
        assert label.by_latents[0].f1 == label.by_channels[0].f1 == 1
        assert label.dense.auroc == 1
        assert label.dense.f1 > 0.98


def test_nothing_is_learned_from_the_rows_that_are_scored():
    """Where these have the opposite labels, what was learned is exactly wrong there."""
    rows = planted()
    assert rows.labels is not None
    fit = torch.arange(len(rows)) % 3 == 0
    labels = rows.labels ^ ~fit[:, None]
    opposite = dataclasses.replace(rows, fit=fit, labels=labels)
    exact = measured(sparse_probing(opposite)).labels[0]
    assert exact.latents[0] == 3
    for score in (*exact.by_latents, exact.by_channels[0], exact.dense):
        assert score.auroc < 0.02


def test_means_are_over_the_labels():
    found = measured(sparse_probing(planted()))
    f1 = [label.by_latents[1].f1 for label in found.labels]
    assert found.mean_f1["latents"][1] == pytest.approx(sum(f1) / len(f1))
    dense = [label.dense.auroc for label in found.labels]
    assert found.mean_auroc["dense"] == [pytest.approx(sum(dense) / len(dense))]


def test_reordered_or_turned_around_latents_leave_every_score_alone():
    """P7.12 and the sign flip of signed codes."""
    rows = planted()
    plain = measured(sparse_probing(rows))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(4))
    for codes in (permuted(rows.codes, order), flipped(rows.codes, torch.tensor([3, 5]))):
        other = measured(sparse_probing(dataclasses.replace(rows, codes=codes)))
        for a, b in zip(plain.labels, other.labels, strict=True):
            assert [s.f1 for s in b.by_latents] == pytest.approx([s.f1 for s in a.by_latents])
            assert [s.auroc for s in b.by_latents] == pytest.approx(
                [s.auroc for s in a.by_latents], abs=1e-6
            )


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), ragged=st.booleans())
def test_ranking_equals_brute_force_over_dense_codes(seed, ragged):
    dense = random_dense(30, 6, seed=seed, signed=True)
    draw = torch.Generator().manual_seed(seed)
    labels, fit = torch.rand(30, 3, generator=draw) < 0.5, torch.rand(30, generator=draw) < 0.6
    difference, deviation = code_moments(sparse(dense, ragged=ragged), labels, fit)
    z, y = dense[fit].double(), labels[fit]
    for i in range(3):
        on, off = z[y[:, i]], z[~y[:, i]]
        means = [part.mean(0) if len(part) else torch.zeros(6) for part in (on, off)]
        assert torch.allclose(difference[:, i], means[0] - means[1])
    assert torch.allclose(deviation, z.std(0, correction=0))
    as_columns = moments(dense, labels, fit)
    both = labels[fit].any(0) & ~labels[fit].all(0)
    assert torch.allclose(as_columns[0][:, both], difference[:, both], atol=1e-9)
    assert torch.allclose(as_columns[1], deviation)


def test_constant_columns_come_last():
    difference = torch.tensor([[0.0], [5.0], [-2.0], [1.0]])
    deviation = torch.tensor([1.0, 0.0, 1.0, 0.1])
    assert rank(difference, deviation, 3).tolist() == [[3, 2, 0]]
    codes = sparse(torch.tensor([[1.0, 0], [1.0, 0]]))
    assert best_latents(codes, torch.tensor([[True], [False]]), torch.ones(2).bool(), 5).shape == (
        1,
        2,
    )


def test_texts_without_labels_or_with_too_rare_ones_are_skipped_with_the_reason():
    rows = planted()
    assert rows.labels is not None
    bare = dataclasses.replace(rows, labels=None, label_names=())
    assert "no ground-truth labels" in reason(sparse_probing(bare))
    rare = dataclasses.replace(rows, labels=rows.labels[:, 2:3], label_names=("rare",))
    assert "raise --n-sample" in reason(sparse_probing(rare))


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_no_threshold_has_a_better_f1(seed):
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(5, (20,), generator=draw).float()
    label = torch.rand(20, generator=draw) < 0.4
    label[0] = True
    best = max(f1_score(scores >= t, label) for t in scores.unique())
    assert f1_score(scores >= best_threshold(scores, label), label) == pytest.approx(best)


def test_a_probe_is_scored_where_it_was_not_fitted():
    scores = torch.tensor([3.0, 2, 1, 0, 3, 2, 1, 0])
    label = torch.tensor([True, True, False, False, True, False, True, False])
    fit = torch.tensor([True] * 4 + [False] * 4)
    found = score_probe(scores, label, fit)
    # The threshold is 2: one hit, one false alarm and one miss on the other half.
    assert found.f1 == pytest.approx(0.5)
    assert found.auroc == auroc(scores[4:], label[4:]) == 0.75

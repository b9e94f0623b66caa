"""The two scores by hand, by brute force, and by the laws they obey (arXiv 2505.20063)."""

import numpy as np
import pytest
import torch
from analysis.steering.cases import LAST, MIDDLE, PROMPT, break_edits, steerable
from hypothesis import given
from hypothesis import strategies as st
from rest import rest

from saelab.analysis.feature_file import FeatureFile, pack_vocabulary, write_features
from saelab.analysis.steering.lens import lens_tokens
from saelab.analysis.steering.measures import (
    ScoreOptions,
    confidence,
    input_scores,
    neutral_prompt,
    output_scores,
    peak_tokens,
)
from saelab.config import UsageError
from saelab.lm.prompt import encode_prompt

ROWS = (np.arange(24).repeat(2), np.tile([1, -1], 24))


def scored(model, rows=ROWS, **options):
    """Output scores and lens tokens of `rows`."""
    tokens = encode_prompt(model.lm, PROMPT)
    directions = torch.from_numpy(rows[1])[:, None] * model.sae.W_dec[rows[0]]
    options = ScoreOptions(prompt=PROMPT, n_lens=3, **options)
    lens = lens_tokens(model.lm, model.writes, directions, options.n_lens)
    return output_scores(model, tokens, rows, lens, options), lens


def one_at_a_time(model, row, lens, *, strength=10.0, error="keep", subtract=True):
    """S_out of one row, written out: one forward pass, every rank counted."""
    tokens = encode_prompt(model.lm, PROMPT)[None]
    latent, sign = int(ROWS[0][row]), int(ROWS[1][row])

    def steer(x):
        codes = model.sae.encode(x[:, -1]).dense()
        delta = sign * strength * codes.abs().max() * model.sae.W_dec[latent]
        base = x[0, -1] if error == "keep" else model.sae.reconstruct(x[:, -1])[0]
        x = x.clone()
        x[0, -1] = base + delta
        return x

    def p(logits):
        probabilities = logits[0, -1].double().softmax(-1).tolist()
        ranks = {t: sum(q > probabilities[t] for q in probabilities) for t in lens[row].tolist()}
        best = min(ranks, key=lambda token: ranks[token])
        return (1 - ranks[best] / len(probabilities)) * probabilities[best]

    steered = p(model.lm.logits(tokens, {model.writes: steer}))
    return steered - (p(model.lm.logits(tokens)) if subtract else 0)


def test_confidence_by_hand():
    probabilities = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.5, 0.3, 0.1, 0.1]])
    found = confidence(probabilities, torch.tensor([[1, 3], [2, 3]]))
    assert found.rank.tolist() == [1, 2]
    assert found.probability.tolist() == pytest.approx([0.3, 0.1])
    # (1 - 1/4) * 0.3 and (1 - 2/4) * 0.1; the tie between 2 and 3 counts for neither.
    assert found.value.tolist() == pytest.approx([0.225, 0.05])


@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 200))
def test_confidence_is_a_probability_that_the_order_of_the_vocabulary_does_not_change(v, k, seed):
    generator = torch.Generator().manual_seed(seed)
    # Few levels, so that ties are common.
    logits = torch.randint(3, (5, v), generator=generator).float()
    lens = torch.stack([torch.randperm(v, generator=generator)[: min(k, v)] for _ in range(5)])
    order = torch.randperm(v, generator=generator)
    place = order.argsort()
    found = confidence(logits.softmax(-1), lens)
    moved = confidence(logits[:, order].softmax(-1), place[lens])
    assert torch.allclose(found.value, moved.value, atol=1e-6)
    assert bool(((found.value >= 0) & (found.value <= 1)).all())


@pytest.mark.parametrize(
    ("form", "how"),
    [
        ("difference", {}),
        ("paper", {"error": "drop"}),
        ("repository", {"subtract": False}),
    ],
)
@pytest.mark.parametrize("variant", ["abs-topk", *rest("topk")])
def test_batches_of_latents_equal_one_at_a_time_in_every_form(perturbed_lm, variant, form, how):
    model = steerable(perturbed_lm, variant)
    found, lens = scored(model, form=form, batch_size=7)
    expected = [one_at_a_time(model, row, lens, **how) for row in range(len(ROWS[0]))]
    assert found.score.tolist() == pytest.approx(expected, abs=1e-5)
    assert max(expected) > 0.2


def test_the_forms_differ_where_they_should(perturbed_lm):
    model = steerable(perturbed_lm)
    difference, paper, repository = (
        scored(model, form=form)[0].score for form in ("difference", "paper", "repository")
    )
    plain = repository - difference
    assert (plain > 0).all()
    assert not np.allclose(paper, difference, atol=1e-4)


def test_at_strength_zero_every_score_is_zero_and_otherwise_between_minus_one_and_one(perturbed_lm):
    model = steerable(perturbed_lm)
    assert scored(model, strength=0.0)[0].score == pytest.approx(np.zeros(48), abs=1e-6)
    for site in (MIDDLE, LAST, "blocks.1.attn.hook_z"):
        score = scored(steerable(perturbed_lm, site=site))[0].score
        assert (np.abs(score) <= 1).all()
        assert np.abs(score).max() > 0.01


def test_renumbering_latents_renumbers_their_scores(perturbed_lm):
    model = steerable(perturbed_lm)
    before = scored(model)[0].score
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, axis in (("W_dec", 0), ("W_enc", 1), ("b_enc", 0)):
            value = model.sae.get_parameter(name)
            value.copy_(value.index_select(axis, order))
    rows = 2 * np.argsort(order.numpy())
    assert before[::2] == pytest.approx(scored(model)[0].score[rows], abs=1e-5)


def test_turning_a_signed_latent_around_swaps_its_poles(perturbed_lm):
    model = steerable(perturbed_lm, "abs-topk")
    before = scored(model)[0].score
    with torch.no_grad():
        for name in ("W_dec", "b_enc"):
            model.sae.get_parameter(name)[5].neg_()
        model.sae.get_parameter("W_enc")[:, 5].neg_()
    after = scored(model)[0].score
    swapped = before.copy()
    swapped[[10, 11]] = before[[11, 10]]
    assert after == pytest.approx(swapped, abs=1e-5)
    assert abs(before[10] - before[11]) > 1e-3


def test_far_out_in_the_last_layer_the_lens_comes_true(perturbed_lm):
    model = steerable(perturbed_lm, site=LAST)
    found, _ = scored(model, strength=1e5)
    assert (found.rank == 0).all()


def test_scores_of_an_edit_that_does_nothing_are_not_believed(perturbed_lm, monkeypatch):
    break_edits(monkeypatch)
    with pytest.raises(RuntimeError, match="missed what was asked"):
        scored(steerable(perturbed_lm))


def test_a_prompt_at_whose_end_nothing_fires_is_refused(perturbed_lm):
    model = steerable(perturbed_lm, "jumprelu")
    with torch.no_grad():
        model.sae.get_parameter("b_enc").fill_(-1e4)
    with pytest.raises(UsageError, match="No latent fires at the last token"):
        scored(model)


def test_the_scale_is_the_largest_activation_at_the_prompt_s_last_position(perturbed_lm):
    model = steerable(perturbed_lm, "abs-topk")
    tokens = encode_prompt(perturbed_lm, PROMPT)[None]
    x = perturbed_lm.capture(tokens, [model.writes])[model.writes][:, -1]
    expected = float(model.sae.encode(x).dense().abs().max())
    assert scored(model)[0].a_max == pytest.approx(expected, rel=1e-5)


def test_the_neutral_prompt_of_the_shipped_model_is_made_of_words_it_knows(tiny_lm, perturbed_lm):
    known = encode_prompt(tiny_lm, neutral_prompt(tiny_lm))
    assert len(known) > 4
    assert neutral_prompt(perturbed_lm) == "In my experience,"


@pytest.fixture
def features(tmp_path) -> FeatureFile:
    """Three latents. Latent 0: tokens 7, 7, 8, 9; latent 1: tokens 5, 6; latent 2: silent."""
    corpus = np.array([[0, 7, 8], [0, 7, 9], [0, 8, 5], [0, 9, 6]], dtype=np.int32)
    places = {
        "top": [[(0, 1), (1, 1), (2, 1), (3, 1)], [(2, 2), (3, 2), None, None], [None] * 4],
        "negative": [[None] * 4, [(0, 2), None, None, None], [None] * 4],
    }
    arrays = {"corpus/tokens": corpus} | pack_vocabulary([str(i) for i in range(10)])
    for kind, rows in places.items():
        found = np.array([[place or (-1, 0) for place in row] for row in rows], dtype=np.int32)
        arrays[f"{kind}/context"], arrays[f"{kind}/position"] = found[:, :, 0], found[:, :, 1]
        arrays[f"{kind}/value"] = np.zeros((3, 4), dtype=np.float32)
    write_features(tmp_path / "features.h5", arrays, {})
    return FeatureFile(tmp_path / "features.h5")


LATENTS = np.array([0, 1, 2, 1]), np.array([1, 1, 1, -1])


def test_input_score_by_hand(features):
    lens = np.array([[7, 8], [5, 1], [7, 8], [8, 0]])
    score, n = input_scores(features, LATENTS, lens, ScoreOptions(min_examples=1))
    assert n.tolist() == [4, 2, 0, 1]
    # Three of 7, 7, 8, 9 (a multiset); one of 5, 6; nothing; the negative pole's one token, 8.
    assert score[[0, 1, 3]].tolist() == [0.75, 0.5, 1.0]
    assert np.isnan(score[2])


def test_too_few_examples_give_no_input_score_and_too_many_are_left_out(features):
    lens = np.array([[7, 8], [5, 1], [7, 8], [8, 0]])
    score, _ = input_scores(features, LATENTS, lens, ScoreOptions(min_examples=3))
    assert np.isnan(score).tolist() == [False, True, True, True]
    score, n = input_scores(features, LATENTS, lens, ScoreOptions(min_examples=1, max_examples=3))
    assert (score[0], n[0]) == (1.0, 3)


def test_peaks_are_the_commonest_tokens_first(features):
    peaks = peak_tokens(features, LATENTS, ScoreOptions())
    assert peaks.tolist()[:3] == [[7, 8, 9, -1, -1], [5, 6, -1, -1, -1], [-1] * 5]
    assert peaks[3].tolist() == [8, -1, -1, -1, -1]

"""Uniformity of importance: by hand, within its bounds, and with gradients checked by a nudge."""

import math

import pytest
import torch
from evaluation.cases import contexts_of, measured, sae_with, sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.evaluation.rows import Skipped
from saelab.evaluation.uniformity import (
    UniformityTokens,
    centred_logit_gradients,
    contributions,
    effective_number,
)
from saelab.host.host import Host
from saelab.host.text import Text, read_text

HOOK = "blocks.0.hook_resid_post"


@pytest.fixture
def tokens(random_lm):
    high = random_lm.info.d_vocab
    return torch.randint(2, high, (3, 8), generator=torch.Generator().manual_seed(0))


def text(tokens, mask=None):
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    return Text(0, contexts_of(tokens), tokens, mask)


def test_equal_effects_count_in_full_and_one_alone_counts_once():
    effects = torch.tensor([[2.0, -2.0, 2.0, 0], [0, 5.0, 0, 0], [3.0, 1.0, 0, 0], [0, 0, 0, 0]])
    effective, l0 = effective_number(effects)
    by_hand = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective.tolist() == pytest.approx([3, 1, by_hand, 0])
    assert l0.tolist() == [3, 1, 2, 0]


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-6, 1e6))
def test_the_ratio_stays_within_its_bounds_and_ignores_the_scale(seed, scale):
    effects = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
    effective, l0 = effective_number(effects)
    r = effective / l0
    assert ((1 / l0 - 1e-9 <= r) & (r <= 1 + 1e-9)).all()
    assert torch.allclose(effective_number(effects * scale)[0], effective, rtol=1e-4)


def test_the_gradient_is_what_a_nudge_does_to_the_centred_logit(random_lm, tokens):
    position = torch.tensor([2, 6, 0])
    x, gradient = centred_logit_gradients(random_lm, HOOK, tokens, position)
    context = torch.arange(3)
    assert torch.equal(x, random_lm.capture(tokens, [HOOK])[HOOK][context, position])
    nudge = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))

    def centred(step):
        def edit(value):
            moved = value.clone()
            moved[context, position] += step * nudge
            return moved

        logits = random_lm.logits(tokens, {HOOK: edit})[context, position].double()
        return logits[context, tokens[context, position + 1]] - logits.mean(1)

    slope = (centred(3e-4) - centred(-3e-4)) / 6e-4
    assert torch.allclose((gradient * nudge).sum(1).double(), slope, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("ragged", [False, True])
def test_a_latent_contributes_its_value_times_its_row_along_the_gradient(ragged):
    dense = torch.tensor([[0, 2.0, -1.0], [3.0, 0, 0]])
    W = torch.tensor([[1.0, 0], [0, 1.0], [1.0, 1.0]])
    gradient = torch.tensor([[1.0, 10.0], [2.0, 20.0]])
    found = contributions(sparse(dense, ragged=ragged), W, gradient)
    assert found.tolist() == [[20, -11], [6, 0]]


def test_latents_turned_around_or_reordered_leave_the_figures_alone(random_lm, tokens):
    W = torch.randn(10, 16, generator=torch.Generator().manual_seed(3))
    turned = W * torch.where(torch.arange(10) % 3 == 0, -1.0, 1.0)[:, None]
    found = []
    for rows in (W, turned, W[torch.randperm(10)]):
        measure = UniformityTokens(random_lm, sae_with(rows, signed=True), HOOK, seed=0)
        measure.update(text(tokens), n_tokens=9)
        found.append(measured(measure.results()))
    for other in found[1:]:
        assert other.r == pytest.approx(found[0].r, rel=1e-4)
    assert found[0].n_tokens == 3
    assert found[0].l0 == 10


def test_it_draws_real_tokens_with_a_real_next_one_and_no_more_than_asked_for(random_lm, tokens):
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[0, 3:5] = True  # one possible place
    mask[1, [1, 3, 5]] = True  # none
    mask[2] = True
    W = torch.eye(16)
    measure = UniformityTokens(random_lm, sae_with(W, signed=True), HOOK, seed=0)
    measure.update(text(tokens, mask), n_tokens=1)
    assert measure.n_tokens == 1
    x, gradient = centred_logit_gradients(random_lm, HOOK, tokens[:1], torch.tensor([3]))
    expected, l0 = effective_number(x * gradient)
    assert measured(measure.results()).effective == pytest.approx(float(expected))
    measure.update(text(tokens, mask), n_tokens=1)
    assert measure.n_tokens == 1
    assert measured(measure.results()).r == pytest.approx(float(expected / l0))


def test_tokens_without_active_latents_are_set_apart(random_lm, tokens):
    silent = sae_with(torch.zeros(4, 16))
    measure = UniformityTokens(random_lm, silent, HOOK, seed=0)
    assert isinstance(measure.results(), Skipped)
    measure.update(text(tokens), n_tokens=3)
    assert isinstance(measure.results(), Skipped)


def test_the_same_seed_draws_the_same_tokens(random_lm, small_run):
    from saelab.host.text import corpus_of

    corpus = corpus_of(small_run, random_lm, "held-out")
    results = []
    for seed in (0, 0, 1):
        measure = UniformityTokens(random_lm, small_run.load_sae(), HOOK, seed=seed)
        for part in read_text(
            Host.of_run(small_run, random_lm), corpus, n_tokens=100, batch_size=2
        ):
            measure.update(part, n_tokens=5)
        results.append(measure.results())
    assert results[0] == results[1]
    assert results[0] != results[2]

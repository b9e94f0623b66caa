"""Ablation sparsity: the formula on known changes, and what is ablated on a real model."""

import math

import pytest
import torch
from evaluation.cases import contexts_of, measured, reason, sae_with
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.evaluation.ablation import AblationTokens, sparsity
from saelab.evaluation.rows import Skipped
from saelab.host.host import Host
from saelab.host.text import TextBatch, corpus_of, stream

HOOK = "blocks.0.hook_resid_post"


@pytest.fixture
def tokens(random_lm):
    high = random_lm.info.d_vocab
    return torch.randint(2, high, (3, 12), generator=torch.Generator().manual_seed(0))


def batch_of(lm, tokens, mask=None):
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    x = lm.capture(tokens, [HOOK])[HOOK][mask].float()
    return TextBatch(0, contexts_of(tokens), tokens, mask, x)


def measure(lm, sae, tokens, *, reach=4, n_latents=3, n_tokens=3, mask=None):
    found = AblationTokens(lm, sae, HOOK, n_latents=n_latents, reach=reach)
    draw = torch.Generator().manual_seed(0)
    found.update(batch_of(lm, tokens, mask), n_tokens=n_tokens, draw=draw)
    return found


def of(delta):
    return sparsity(delta.abs().sum(1), delta.pow(2).sum(1), delta.shape[1])


def test_one_changed_logit_is_sparsest_and_all_alike_is_densest():
    delta = torch.tensor([[0, 0, 7.0, 0], [2.0, -2.0, 2.0, 2.0], [3.0, 1.0, 0, 0], [0, 0, 0, 0]])
    assert of(delta).tolist() == pytest.approx([1 / 4, 1, 16 / 10 / 4, 0])


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 50), scale=st.floats(1e-3, 1e3))
def test_sparsity_keeps_its_bounds_and_ignores_the_scale(seed, n, scale):
    delta = torch.randn(4, n, generator=torch.Generator().manual_seed(seed)).double()
    found = of(delta)
    assert ((found >= 1 / n - 1e-9) & (found <= 1 + 1e-9)).all()
    assert torch.allclose(of(-scale * delta), found)


def test_gaussian_changes_have_the_known_value():
    delta = torch.randn(1, 200_000, generator=torch.Generator().manual_seed(0)).double()
    assert float(of(delta)) == pytest.approx(2 / math.pi, abs=0.005)


def test_it_equals_the_definition_run_one_ablation_at_a_time(random_lm, tokens):
    """Every latent and every channel of every token, so that the draw does not matter."""
    W = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    b_dec = torch.randn(16, generator=torch.Generator().manual_seed(2))
    sae = sae_with(W, b_dec, signed=True)
    reach = 12  # Position 0 is then the one place with all of it.
    found = measured(measure(random_lm, sae, tokens, reach=reach, n_latents=16).results())
    x = random_lm.capture(tokens, [HOOK])[HOOK]
    plain = random_lm.logits(tokens)
    expected = {"latents": [], "channels": []}
    for context in range(3):
        here = x[context, 0]
        z = sae.encode(here[None]).dense()[0]
        changes = {"latents": -z[:, None] * W, "channels": torch.diag(b_dec - here)}
        for name, rows in changes.items():
            for row in rows:

                def edit(value, row=row, context=context):
                    moved = value.clone()
                    moved[context, 0] += row
                    return moved

                delta = (random_lm.logits(tokens, {HOOK: edit}) - plain)[context].double()
                delta = delta - delta.median(-1, keepdim=True).values
                expected[name].append(
                    float(delta.abs().sum() ** 2 / delta.pow(2).sum() / delta.numel())
                )
    for name, values in expected.items():
        part = getattr(found, name)
        assert part.n == len(values)
        assert part.mean == pytest.approx(sum(values) / len(values), rel=1e-3)


def test_turning_a_latent_around_changes_nothing(random_lm, tokens):
    W = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    plain, turned = (
        measured(measure(random_lm, sae_with(rows, signed=True), tokens, n_latents=4).results())
        for rows in (W, W * torch.tensor([[1.0], [-1], [1], [-1]]))
    )
    assert plain.latents.mean == pytest.approx(turned.latents.mean, rel=1e-4)


def test_latents_that_are_silent_or_write_nothing_are_not_counted(random_lm, tokens):
    W = torch.zeros(6, 16)
    W[0, 0] = 1.0
    sae = sae_with(W, signed=True)
    found = measured(measure(random_lm, sae, tokens, n_latents=6).results())
    # The zero rows have a zero code, so latent 0 alone is ever active.
    assert (found.latents.n, found.latents.n_without) == (3, 0)
    sae.W_dec.data.zero_()
    assert isinstance(measure(random_lm, sae, tokens).results(), Skipped)


def test_tokens_are_drawn_where_the_whole_reach_is_real(random_lm, tokens):
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[0, 2:6] = True  # position 2 alone
    mask[1, 1:4] = True  # too short
    mask[2, 3:] = True
    found = AblationTokens(random_lm, sae_with(torch.eye(16)), HOOK, n_latents=2, reach=4)
    possible = found._possible(mask)
    assert possible.nonzero().tolist() == [[0, 2], *([2, p] for p in range(3, 9))]
    found = measure(random_lm, sae_with(torch.eye(16), signed=True), tokens, mask=mask)
    assert found.n_tokens == 2


def test_the_row_that_is_encoded_is_that_of_the_drawn_token(random_lm, tokens, monkeypatch):
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    mask[0, 1] = False
    seen = []
    real = AblationTokens._measure
    monkeypatch.setattr(
        AblationTokens,
        "_measure",
        lambda self, ids, position, changes: (
            seen.append((ids, position, changes)) or real(self, ids, position, changes)
        ),
    )
    sae = sae_with(torch.eye(16), signed=True)
    measure(random_lm, sae, tokens, mask=mask, n_latents=16)
    x = random_lm.capture(tokens, [HOOK])[HOOK]
    assert len(seen) == 3
    for context, (ids, position, changes) in enumerate(seen):
        assert torch.equal(ids, tokens[context])
        removed = -changes["latents"].sum(0)
        assert torch.allclose(removed, x[context, position])


def test_a_text_too_short_for_the_reach_is_skipped_with_the_remedy(random_lm, small_run):
    corpus = corpus_of(small_run, random_lm, "held-out")
    found = AblationTokens(random_lm, small_run.load_sae(), HOOK, n_latents=2, reach=16)
    for batch in stream(Host.of_run(small_run, random_lm), corpus, n_tokens=50, batch_size=4):
        found.update(batch, n_tokens=5, draw=torch.Generator())
    assert "16 real positions" in reason(found.results())
    assert "--reach" in reason(found.results())

"""Norms and duplicates against brute force over all pairs."""

import math

import pytest
import torch
from evaluation.cases import sae_with
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.evaluation import dictionary
from saelab.evaluation.dictionary import dictionary_figures
from saelab.sae.matching_pursuit import MatchingPursuitConfig


def close_rows(seed, n=12, d_in=3):
    """Few directions with a little noise, so that many pairs are close or opposite."""
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(4, d_in, generator=draw)[torch.randint(4, (n,), generator=draw)]
    sign = 1 - 2 * torch.randint(2, (n, 1), generator=draw)
    return base * sign + 0.05 * torch.randn(n, d_in, generator=draw)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6), signed=st.booleans(), block=st.sampled_from([1, 12, 30, 60, 2**24])
)
def test_pairs_equal_brute_force_in_any_blocks(seed, signed, block):
    W = close_rows(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dictionary, "CELLS_AT_ONCE", block)
        found = dictionary_figures(sae_with(W), signed=signed)
    unit = W / W.norm(dim=1, keepdim=True)
    cosine = unit @ unit.T
    score = cosine.abs() if signed else cosine
    pairs = [(i, j) for i in range(12) for j in range(i + 1, 12)]
    near = [(i, j) for i, j in pairs if score[i, j] > 0.95]
    assert found.duplicates == len(near)
    assert found.in_duplicates == len({i for pair in near for i in pair})
    opposite = sum(bool(cosine[i, j] < -0.95) for i, j in pairs)
    assert found.opposites == (0 if signed else opposite)
    score.fill_diagonal_(-2)
    assert found.nearest_mean == pytest.approx(float(score.amax(1).mean()), abs=1e-5)
    best = sorted((float(score[i, j]) for i, j in pairs), reverse=True)[:10]
    assert [pair[2] for pair in found.closest] == pytest.approx(best, abs=1e-5)


def test_a_case_by_hand():
    W = torch.tensor([[1.0, 0], [2.0, 0], [0, 3.0], [-1.0, 0]])
    found = dictionary_figures(sae_with(W), signed=False)
    assert (found.norm_min, found.norm_mean, found.norm_max, found.not_unit) == (1, 1.75, 3, 2)
    assert (found.duplicates, found.in_duplicates, found.opposites) == (1, 2, 2)
    assert found.closest[0] == (0, 1, 1)
    assert found.nearest_mean == pytest.approx((1 + 1 + 0 + 0) / 4)
    assert (found.encoder_mean, found.encoder_collinear) == (pytest.approx(1), 4)
    signed = dictionary_figures(sae_with(W), signed=True)
    assert (signed.duplicates, signed.in_duplicates, signed.opposites) == (3, 3, 0)


def test_encoder_and_decoder_are_compared_latent_by_latent():
    sae = sae_with(torch.eye(2))
    turned = torch.tensor([[math.cos(1.0), 0], [math.sin(1.0), 1.0]])
    sae.W_enc.data.copy_(turned)
    found = dictionary_figures(sae, signed=False)
    assert found.encoder_min == pytest.approx(math.cos(1.0))
    assert found.encoder_collinear == 1


def test_atoms_that_encode_too_have_no_encoder_to_compare():
    sae = MatchingPursuitConfig(d_sae=6, k=2).build(4)
    found = dictionary_figures(sae, signed=True)
    assert found.encoder_mean is None
    assert found.encoder_collinear is None


def test_permuting_or_turning_around_latents_of_signed_codes_changes_no_count():
    W = close_rows(3)
    plain = dictionary_figures(sae_with(W), signed=True)
    turned = W.clone()
    turned[[1, 4, 7]] *= -1
    for other in (W[torch.randperm(12)], turned):
        found = dictionary_figures(sae_with(other), signed=True)
        assert (found.duplicates, found.in_duplicates) == (plain.duplicates, plain.in_duplicates)
        assert found.nearest_mean == pytest.approx(plain.nearest_mean, abs=1e-6)


def test_a_silent_row_is_nobodys_duplicate():
    found = dictionary_figures(sae_with(torch.zeros(3, 2)), signed=True)
    assert (found.duplicates, found.nearest_mean, found.norm_max) == (0, 0, 0)

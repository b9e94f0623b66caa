"""Description length: by hand, against dense formulas, and the laws that bound it."""

import math

import pytest
import torch
from evaluation.cases import (
    flipped,
    measured,
    permuted,
    random_dense,
    reason,
    rows_of,
    sae_with,
    sparse,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.evaluation.mdl import (
    channel_bits,
    code_bits,
    description_length,
    entropy_bias,
    quantised,
)


def entropy(p):
    return -sum(q * math.log2(q) for q in p if q > 0)


def dense_bits(z, n_bins):
    """The definition, latent by latent, over dense codes."""
    total = 0.0
    for column in z.T.double():
        on = column != 0
        p = float(on.double().mean())
        values = column[on]
        place = (values.abs() / column.abs().max() * n_bins).long().clamp(max=n_bins - 1)
        symbols = [(int(b), bool(v < 0)) for b, v in zip(place, values, strict=True)]
        shares = [symbols.count(s) / len(symbols) for s in set(symbols)]
        total += entropy([p, 1 - p]) + p * entropy(shares)
    return total


def test_a_case_by_hand():
    # Latent 0 fires on half the rows (1 bit), half of these in the lower of two bins (1/2 bit);
    # latent 1 on a quarter, always in the upper one; latent 2 never.
    z = torch.tensor([[1.0, 0, 0], [4.0, 2.0, 0], [0, 0, 0], [0, 0, 0]])
    expected = 1 + 0.5 * 1 + entropy([0.25, 0.75])
    assert code_bits(sparse(z), 2) == pytest.approx(expected)
    rounded = quantised(sparse(z), 2).dense()
    assert rounded.tolist() == [[1.0, 0, 0], [3.0, 1.5, 0], [0, 0, 0], [0, 0, 0]]


def test_a_sign_is_a_bit():
    z = torch.tensor([[2.0], [-2.0], [2.0], [-2.0]])
    assert code_bits(sparse(z), 1) == pytest.approx(1)
    assert code_bits(sparse(z.abs()), 1) == 0
    assert quantised(sparse(z), 4).dense().flatten().tolist() == [1.75, -1.75, 1.75, -1.75]


def test_silent_codes_take_no_bits():
    assert code_bits(sparse(torch.zeros(5, 3)), 8) == 0
    assert code_bits(sparse(torch.zeros(5, 3), ragged=True), 8) == 0


cases = given(
    seed=st.integers(0, 10**6),
    n_bins=st.sampled_from([1, 2, 4, 8, 32]),
    signed=st.booleans(),
    ragged=st.booleans(),
)


@settings(max_examples=40)
@cases
def test_the_length_is_the_definitions_and_keeps_its_laws(seed, n_bins, signed, ragged):
    z = random_dense(40, 6, seed=seed, signed=signed)
    codes = sparse(z, ragged=ragged)
    bits = code_bits(codes, n_bins)
    assert bits == pytest.approx(dense_bits(z, n_bins), abs=1e-9)
    # Checkable 1: never below 0, never above independent latents at the mean rate.
    rate = float((z != 0).double().mean())
    l0, m = 6 * rate, 6
    assert 0 <= bits <= m * entropy([rate, 1 - rate]) + l0 * (math.log2(n_bins) + signed) + 1e-9
    # Checkable 3: a refinement never takes fewer bits.
    assert code_bits(codes, 2 * n_bins) >= bits - 1e-9
    # Checkable 4: nothing moves further than half a bin, and silence stays silence.
    rounded = quantised(codes, n_bins).dense()
    limit = z.abs().amax(0) / (2 * n_bins)
    assert ((rounded - z).abs() <= limit + 1e-6).all()
    assert torch.equal(rounded != 0, z != 0)


def test_neither_the_order_of_latents_nor_their_sign_matters():
    codes = sparse(random_dense(60, 8, signed=True))
    bits = code_bits(codes, 4)
    assert code_bits(permuted(codes, torch.randperm(8)), 4) == pytest.approx(bits)
    assert code_bits(flipped(codes, torch.tensor([0, 5])), 4) == pytest.approx(bits)


def test_the_bias_is_what_small_samples_miss_on_average():
    """Over many latents of one known source, the length and the bias make the true length."""
    draw = torch.Generator().manual_seed(0)
    true = entropy([0.3, 0.7]) + 0.3 * 2  # fires with 0.3, four equally likely values
    on = torch.rand(150, 4000, generator=draw) < 0.3
    value = (2 * torch.randint(4, (150, 4000), generator=draw) + 1) / 8  # one in each bin
    codes = sparse(on * value)
    missing = true - code_bits(codes, 4) / 4000
    assert 0.015 < missing < 0.03
    assert entropy_bias(codes, 4) / 4000 == pytest.approx(missing, rel=0.2)


def test_the_chosen_grid_is_the_coarsest_within_the_tolerance():
    z = random_dense(300, 6)
    W = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1))).Q
    x = z @ W + 0.01 * torch.randn(300, 6, generator=torch.Generator().manual_seed(2))
    found = measured(description_length(rows_of(x, sparse(z)), sae_with(W), tolerance=0.003))
    assert found.chosen is not None
    assert found.chosen == found.curve[-1]
    assert found.chosen.fvu <= found.fvu + 0.003 < found.curve[-2].fvu
    fvu = [level.fvu for level in found.curve]
    bits = [level.bits for level in found.curve]
    assert fvu == sorted(fvu, reverse=True)
    assert bits == sorted(bits)
    variance = (x - x.mean(0)).double().pow(2).sum()
    rounded = quantised(sparse(z), found.chosen.n_bins).dense() @ W
    assert found.chosen.fvu == pytest.approx(float((x - rounded).double().pow(2).sum() / variance))


def test_codes_that_the_atoms_explain_take_fewer_bits_than_the_channels():
    z = random_dense(2000, 12, rate=0.1)
    W = torch.nn.functional.normalize(
        torch.randn(12, 12, generator=torch.Generator().manual_seed(1)), dim=1
    )
    found = measured(description_length(rows_of(z @ W, sparse(z)), sae_with(W), tolerance=0.01))
    assert found.dense_bits is not None
    assert found.chosen is not None
    assert found.chosen.bits < found.dense_bits / 2


def test_channels_take_the_entropy_of_their_bins():
    x = torch.tensor([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    # Four bins hold one row each: 2 bits; rounding leaves (3/8)^2 + (1/8)^2, twice, of variance 5.
    assert channel_bits(x, (2 * 9 + 2) / 64 / 5 + 1e-6) == pytest.approx(2)
    assert channel_bits(x, 1.0) == 0
    assert channel_bits(x, -1.0) is None


def test_rows_that_are_all_the_same_have_no_length():
    rows = rows_of(torch.ones(3, 4), sparse(torch.ones(3, 4)))
    assert "no FVU" in reason(description_length(rows, sae_with(torch.eye(4)), tolerance=0.01))

"""Selection rules against brute force and against each other."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from saelab.pursuit.select import (
    above,
    abs_top_k,
    among,
    batch_top_k,
    below,
    largest,
    nonzero,
    top_k,
)


def rows(seed: int, batch: int = 5, width: int = 12) -> torch.Tensor:
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 10**6), k=st.integers(1, 12))
def test_top_k_keeps_the_k_largest_and_rectifies_them(seed, k):
    a = rows(seed)
    kth = a.sort(dim=1, descending=True).values[:, k - 1 : k]
    expected = torch.where(a >= kth, a.relu(), torch.zeros(()))
    assert torch.equal(top_k(a, k).dense(), expected)


@given(seed=st.integers(0, 10**6), k=st.integers(1, 12))
def test_abs_top_k_is_the_projection_onto_k_sparse_vectors(seed, k):
    a = rows(seed)
    z = abs_top_k(a, k).dense()
    dropped = a.abs().sort(dim=1).values[:, : 12 - k].pow(2).sum(1)
    torch.testing.assert_close((a - z).pow(2).sum(1), dropped)


@given(seed=st.integers(0, 10**6), k=st.integers(1, 12))
def test_abs_top_k_is_odd(seed, k):
    a = rows(seed)
    assert torch.equal(abs_top_k(-a, k).dense(), -abs_top_k(a, k).dense())


@given(seed=st.integers(0, 10**6), k=st.integers(1, 12))
def test_abs_top_k_equals_top_k_on_nonnegative_rows(seed, k):
    a = rows(seed).abs()
    assert torch.equal(abs_top_k(a, k).dense(), top_k(a, k).dense())


@given(seed=st.integers(0, 10**6), k=st.integers(1, 6))
def test_abs_top_k_equals_top_k_of_both_signs_folded(seed, k):
    a = rows(seed)
    both = top_k(torch.cat([a, -a], dim=1), k).dense()
    assert torch.equal(abs_top_k(a, k).dense(), both[:, :12] - both[:, 12:])


@given(seed=st.integers(0, 10**6), k=st.integers(1, 12), bits=st.integers(1, 2**12 - 1))
def test_restricted_selection_equals_selection_with_the_rest_at_minus_infinity(seed, k, bits):
    a = rows(seed)
    allowed = torch.tensor([bool(bits >> j & 1) for j in range(12)])
    n = min(k, int(allowed.sum()))
    expected = top_k(a.masked_fill(~allowed, -torch.inf), n).dense()
    assert torch.equal(among(top_k, a, allowed, k).dense(), expected)
    signed = abs_top_k(a.masked_fill(~allowed, 0.0), n).dense()
    assert torch.equal(among(abs_top_k, a, allowed, k).dense(), signed)


@given(seed=st.integers(0, 10**6), k=st.floats(0.2, 12), signed=st.booleans())
def test_batch_top_k_keeps_the_largest_of_the_whole_batch(seed, k, signed):
    a = rows(seed)
    size = a.abs() if signed else a
    kept = size >= size.flatten().sort(descending=True).values[int(5 * k) - 1]
    expected = torch.where(kept, a if signed else a.relu(), torch.zeros(()))
    codes = batch_top_k(a, k, signed=signed)
    assert torch.equal(codes.dense(), expected)
    assert codes.values.numel() == int(5 * k)


@given(seed=st.integers(0, 10**6), k=st.integers(1, 12), signed=st.booleans())
def test_batch_top_k_of_one_row_is_the_rows_own(seed, k, signed):
    a = rows(seed, batch=1)
    alone = (abs_top_k if signed else top_k)(a, k)
    assert torch.equal(batch_top_k(a, k, signed=signed).dense(), alone.dense())


@given(seed=st.integers(0, 10**6), k=st.integers(1, 12))
def test_batch_top_k_of_permuted_rows_is_permuted(seed, k):
    a = rows(seed)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(batch_top_k(a[order], k).dense(), batch_top_k(a, k).dense()[order])


@given(seed=st.integers(0, 10**6), k=st.integers(1, 11))
def test_batch_top_k_equals_the_threshold_that_lies_between(seed, k):
    a = rows(seed)
    ordered = a.relu().flatten().sort(descending=True).values
    between = (ordered[5 * k - 1] + ordered[5 * k]) / 2
    assert torch.equal(above(a, between).dense(), batch_top_k(a, k).dense())


@given(seed=st.integers(0, 10**6), signed=st.booleans())
def test_above_compares_each_latent_with_its_own_threshold(seed, signed):
    a = rows(seed)
    threshold = torch.rand(12, generator=torch.Generator().manual_seed(seed))
    size = a.abs() if signed else a
    codes = above(a, threshold, signed=signed)
    assert torch.equal(codes.dense(), torch.where(size > threshold, a, 0.0))
    magnitudes = codes.values.abs()
    assert torch.equal(magnitudes, magnitudes.sort(dim=1, descending=True).values)


def test_above_an_unreachable_threshold_every_row_is_silent():
    codes = above(rows(0), torch.tensor(1e6))
    assert len(codes) == 5
    assert not codes.active.any()


@given(seed=st.integers(0, 10**6), k=st.integers(1, 12))
def test_largest_keeps_negative_values_where_positive_ones_run_out(seed, k):
    a = rows(seed)
    assert torch.equal(largest(a, k).values, a.sort(dim=1, descending=True).values[:, :k])


@given(seed=st.integers(0, 10**6), start=st.integers(0, 12), stop=st.integers(0, 12))
def test_below_keeps_the_latents_of_a_range(seed, start, stop):
    a = rows(seed)
    inside = (torch.arange(12) >= start) & (torch.arange(12) < stop)
    for codes in (top_k(a, 5), batch_top_k(a, 2.5)):
        assert torch.equal(below(codes, stop, start).dense(), codes.dense() * inside)


@given(seed=st.integers(0, 10**6))
def test_nonzero_is_the_inverse_of_dense(seed):
    z = rows(seed).relu() * (rows(seed + 1) > 0.5)
    assert torch.equal(nonzero(z).dense(), z)

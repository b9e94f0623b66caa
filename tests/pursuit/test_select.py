"""Selection rules against brute force and against each other."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from saelab.pursuit.select import abs_top_k, abs_top_k_among, top_k, top_k_among


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
    assert torch.equal(top_k_among(a, allowed, k).dense(), expected)
    signed = abs_top_k(a.masked_fill(~allowed, 0.0), n).dense()
    assert torch.equal(abs_top_k_among(a, allowed, k).dense(), signed)

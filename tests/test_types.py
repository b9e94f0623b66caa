"""Flat and rectangular codes say the same."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from saelab.kernels import reference, sparse_decode
from saelab.pursuit.select import batch_top_k, nonzero, top_k
from saelab.types import SparseCodes


def rows(seed: int, batch: int = 6, width: int = 10) -> torch.Tensor:
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 10**6), k=st.floats(0.2, 9.9))
def test_flat_codes_equal_their_rectangular_form(seed, k):
    flat = batch_top_k(rows(seed), k)
    wide = flat.rectangular()
    assert len(wide) == len(flat) == 6
    assert torch.equal(wide.dense(), flat.dense())
    assert torch.equal(wide.firing_counts(), flat.firing_counts())
    assert wide.mean_l0() == flat.mean_l0()


@given(seed=st.integers(0, 10**6), k=st.floats(0.2, 9.9))
def test_flat_codes_decode_with_the_gradients_of_the_dense_product(seed, k):
    results = []
    for decode in (sparse_decode, reference.sparse_decode):
        a = rows(seed).double().requires_grad_()
        W = rows(seed + 1, 10, 3).double().requires_grad_()
        out = decode(batch_top_k(a, k), W)
        out.pow(2).sum().backward()
        results.append((out.detach(), a.grad, W.grad))
    for fast, dense in zip(*results, strict=True):
        torch.testing.assert_close(fast, dense)


def test_rows_without_entries_decode_to_zero():
    z = torch.zeros(4, 10)
    z[2, 3] = 1.5
    codes = nonzero(z)
    assert torch.equal(codes.rows(), torch.tensor([2]))
    assert torch.equal(sparse_decode(codes, torch.ones(10, 3)), z.sum(1, keepdim=True).expand(4, 3))
    assert torch.equal(sparse_decode(nonzero(torch.zeros(4, 10)), torch.ones(10, 3)), z[:, :3] * 0)


def test_stacking_pads_narrower_codes_with_silence():
    parts = [top_k(rows(0), 2), top_k(rows(1), 4), batch_top_k(rows(2), 3)]
    stacked = SparseCodes.stack(parts)
    assert torch.equal(stacked.dense(), torch.cat([part.dense() for part in parts]))

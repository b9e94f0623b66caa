"""The sparse backward pass of an affine encoder against autograd through the dense product."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saelab.kernels import affine_codes
from saelab.pursuit.select import abs_top_k, batch_top_k, largest, top_k

RULES = {
    "top_k": top_k,
    "largest": largest,
    "abs_top_k": abs_top_k,
    "batch_top_k": batch_top_k,
    "signed_batch": lambda a, k: batch_top_k(a, k, signed=True),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("centred", [True, False])
@given(seed=st.integers(0, 10**6), batch=st.integers(1, 6), k=st.integers(1, 12))
def test_all_gradients_equal_those_through_the_dense_product(rule, centred, seed, batch, k):
    d_in, d_sae = 5, 12
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    start = [draw(batch, d_in), draw(d_in, d_sae), draw(d_sae)]
    start += [draw(d_in)] if centred else []
    slopes = draw(batch, d_sae)
    results = []
    for sparse in (True, False):
        x, W, b, *rest = leaves = [t.clone().requires_grad_() for t in start]
        a = (x - rest[0] if rest else x) @ W + b
        codes = RULES[rule](a.detach() if sparse else a, k)
        if sparse:
            codes = affine_codes(codes, x, W, b, *rest)
        (codes.dense() * slopes).sum().backward()
        results.append([codes.values.detach(), *(leaf.grad for leaf in leaves)])
    for fast, dense in zip(*results, strict=True):
        torch.testing.assert_close(fast, dense)


def test_codes_without_entries_have_zero_gradients():
    W = torch.ones(2, 3, requires_grad=True)
    b = torch.zeros(3, requires_grad=True)
    x = torch.ones(4, 2)
    codes = affine_codes(batch_top_k(x @ W.detach(), 0), x, W, b)
    codes.values.sum().backward()
    assert W.grad is not None
    assert not W.grad.any()

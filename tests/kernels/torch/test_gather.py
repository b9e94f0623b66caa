"""The gathered decode against its dense meaning, forward and backward."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from saelab.kernels import reference, sparse_decode
from saelab.pursuit.select import abs_top_k
from saelab.types import SparseCodes


@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 6),
    d_in=st.integers(1, 9),
    d_sae=st.integers(1, 20),
    k=st.integers(1, 20),
)
def test_decode_and_both_gradients_equal_the_dense_product(seed, batch, d_in, d_sae, k):
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(batch, d_sae, generator=generator, dtype=torch.float64)
    W = torch.randn(d_sae, d_in, generator=generator, dtype=torch.float64)
    upstream = torch.randn(batch, d_in, generator=generator, dtype=torch.float64)
    chosen = abs_top_k(pre, min(k, d_sae))
    results = []
    for decode in (sparse_decode, reference.sparse_decode):
        values = chosen.values.clone().requires_grad_()
        weights = W.clone().requires_grad_()
        out = decode(SparseCodes(values, chosen.indices, d_sae), weights)
        out.backward(upstream)
        results.append((out.detach(), values.grad, weights.grad))
    for fast, dense in zip(*results, strict=True):
        torch.testing.assert_close(fast, dense)

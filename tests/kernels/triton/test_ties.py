"""Rounded pre-activations keep the top k of the unrounded ones, in every row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.triton_device import DEVICE

from saelab.kernels.triton.select.rows import segment_maxima, select_top_k
from saelab.kernels.triton.select.ties import TieFactors, settle_ties


def factors_of(seed, batch, d, m, size):
    """Small whole numbers: their products are exact in float32, and many round to the same."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randint(-size, size + 1, shape, generator=generator).bfloat16().to(DEVICE)

    return TieFactors(draw(batch, d), draw(m, d), draw(m))


def exact_codes(factors, k, *, by_magnitude):
    inputs, W, bias = (t.double() for t in factors)
    products = inputs @ W.T + bias
    ranked = products.abs() if by_magnitude else products
    # A stable sort keeps the lowest index among equals.
    best = ranked.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(products).scatter(1, best, products.gather(1, best))


def settled_codes(factors, k, *, by_magnitude):
    inputs, W, bias = (t.float() for t in factors)
    pre_acts = (inputs @ W.T + bias).bfloat16()
    maxima = segment_maxima(pre_acts, by_magnitude=by_magnitude)
    values, indices = codes = select_top_k(
        pre_acts, k, by_magnitude=by_magnitude, rectify=not by_magnitude, maxima=maxima
    )
    settle_ties(pre_acts, *maxima, factors, codes, by_magnitude=by_magnitude)
    return torch.zeros_like(pre_acts).scatter(1, indices.long(), values).double()


@settings(max_examples=20)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 3),
    d=st.sampled_from([3, 20, 1200]),
    m=st.sampled_from([1, 7, 70, 200]),
    size=st.sampled_from([1, 4, 40]),
    by_magnitude=st.booleans(),
    data=st.data(),
)
def test_the_top_k_is_that_before_rounding(seed, batch, d, m, size, by_magnitude, data):
    k = data.draw(st.integers(1, min(m, 40)))
    factors = factors_of(seed, batch, d, m, size)
    exact = exact_codes(factors, k, by_magnitude=by_magnitude)
    if not by_magnitude:
        exact = exact.clamp_min(0)
    assert torch.equal(
        settled_codes(factors, k, by_magnitude=by_magnitude), exact.bfloat16().double()
    )


def test_without_it_rounding_would_choose_otherwise():
    factors = factors_of(0, 8, 1200, 200, 4)
    exact = exact_codes(factors, 10, by_magnitude=True) != 0
    inputs, W, bias = (t.float() for t in factors)
    pre_acts = (inputs @ W.T + bias).bfloat16()
    _, indices = select_top_k(pre_acts, 10, by_magnitude=True)
    assert not exact.gather(1, indices.long()).all()


@pytest.mark.parametrize(("m", "every"), [(130, 1), (1100, 15)])
def test_a_row_of_entries_that_all_round_to_the_same_is_settled_too(m, every):
    """Products 1024 to 1027, which bfloat16 cannot tell apart; in the second case in two tiles."""
    generator = torch.Generator().manual_seed(m)
    extra = torch.randint(0, 4, (m, 1), generator=generator)
    extra[torch.arange(m) % every > 0] = -1000
    W = torch.cat([torch.full((m, 1), 1024), extra], dim=1).bfloat16().to(DEVICE)
    factors = TieFactors(W.new_ones(1, 2), W, W.new_zeros(m))
    settled = settled_codes(factors, 17, by_magnitude=False)
    best = extra[:, 0].sort(descending=True, stable=True).indices[:17]
    assert sorted(best.tolist()) == settled[0].nonzero()[:, 0].tolist()

"""Selection in one read equals a whole stable sort, in every row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.triton_device import DEVICE

from saelab.config import UsageError
from saelab.kernels import reference
from saelab.kernels.rules import EffectRules
from saelab.kernels.triton.select.effects import Effects
from saelab.kernels.triton.select.rows import select_top_k

INF = float("inf")


def assert_exact(pre_acts, k, **options):
    pre_acts = pre_acts.to(DEVICE)
    values, indices = select_top_k(pre_acts, k, **options)
    expected, places = reference.select_top_k(pre_acts, k, **options)
    assert torch.equal(indices, places)
    assert torch.equal(values, expected)


def rows_that_are_hard(m):
    """Ties, orders and infinities that break a selection by sampled thresholds."""
    ramp = torch.arange(m) / m
    few = -torch.rand(m, generator=torch.Generator().manual_seed(0)) - 0.1
    few[m // 2] = 1.0
    signed_zeros = torch.zeros(m)
    signed_zeros[::2] = -0.0
    infinite = torch.full((m,), -INF)
    infinite[m - 1] = INF
    together = torch.zeros(m)
    together[m // 2 :][:40] = torch.arange(40).float()[: m - m // 2]
    return torch.stack([ramp, -ramp, few, signed_zeros, infinite, together, torch.full((m,), 0.5)])


@pytest.mark.parametrize(
    ("dtype", "kept"), [(torch.bfloat16, slice(None)), (torch.float32, slice(1, 5))]
)
def test_ties_sorted_rows_infinities_and_rows_with_few_positives_are_exact(dtype, kept):
    assert_exact(rows_that_are_hard(700)[kept].to(dtype), 6)


def test_magnitudes_rank_by_size_and_keep_their_signs():
    assert_exact(rows_that_are_hard(150)[1:5].bfloat16(), 3, by_magnitude=True)


@settings(max_examples=5)
@given(
    seed=st.integers(0, 10**6),
    m=st.integers(1, 400),
    k=st.integers(1, 9),
    half=st.booleans(),
    coarse=st.booleans(),
)
def test_any_width_and_any_k_equal_a_stable_sort(seed, m, k, half, coarse):
    pre_acts = torch.randn(1, m, generator=torch.Generator().manual_seed(seed))
    pre_acts = pre_acts.round() if coarse else pre_acts
    assert_exact(pre_acts.bfloat16() if half else pre_acts, min(k, m), rectify=True)


def test_unordered_codes_are_the_same_set_by_rising_index():
    pre_acts = torch.randn(2, 200, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    values, indices = select_top_k(pre_acts, 5, ordered=False)
    expected = reference.select_top_k(pre_acts, 5)[1].sort(dim=1).values
    assert torch.equal(indices, expected)
    assert torch.equal(values, pre_acts.gather(1, indices.long()))


@pytest.mark.parametrize("k", [0, 4, 513])
def test_a_k_that_does_not_fit_is_refused(k):
    with pytest.raises(UsageError, match=f"k={k} must be within"):
        select_top_k(torch.zeros(1, 600 if k > 4 else 3), k)


@pytest.mark.gpu
@pytest.mark.parametrize(("m", "k"), [(32768, 32), (50001, 20), (65536, 64), (131072, 64)])
@pytest.mark.parametrize("by_magnitude", [False, True])
def test_the_sizes_of_real_dictionaries_are_exact_on_the_device(m, k, by_magnitude):
    if DEVICE == "cpu":
        pytest.skip("needs a CUDA device")
    generator = torch.Generator().manual_seed(m)
    rows = torch.cat([rows_that_are_hard(m), torch.randn(57, m, generator=generator)])
    assert_exact(rows.bfloat16(), k, by_magnitude=by_magnitude)


@pytest.mark.parametrize("product_alone", [False, True])
def test_the_choice_by_effect_is_that_of_the_dense_score(product_alone):
    """A row without a gradient, whose products are zero, is ranked by value."""
    generator = torch.Generator().manual_seed(0)
    pre_acts, products = torch.randn(2, 3, 150, generator=generator).to(DEVICE)
    products[1] = 0
    base = torch.tensor([0.0, 1.0, 0.0] if product_alone else [1.0] * 3, device=DEVICE)
    grad, atoms = torch.zeros(3, 2, device=DEVICE), torch.zeros(150, 2, device=DEVICE)
    rules = EffectRules(0.7, product_alone, normalised=True)
    effects = Effects(grad, products, base, rules, atoms)
    values, indices = select_top_k(pre_acts, 4, rectify=True, effects=effects)
    score = pre_acts.relu() * (base[:, None] + 0.7 * products.abs())
    expected = score.topk(4, dim=1)
    assert torch.equal(indices.long(), expected.indices)
    assert torch.equal(values, pre_acts.gather(1, expected.indices))

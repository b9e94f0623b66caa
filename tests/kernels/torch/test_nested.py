"""Nested errors against the cumulative sum that they avoid, forward, backward and in memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks

from saelab.config import UsageError
from saelab.kernels import sparse_decode
from saelab.kernels.torch.nested import nested_errors
from saelab.pursuit.select import top_k
from saelab.types import SparseCodes

shapes = given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 5),
    d_out=st.integers(1, 7),
    d_sae=st.integers(1, 12),
    data=st.data(),
)


def problem(seed: int, batch: int, d_out: int, d_sae: int, k: int, dtype=torch.float64):
    """x, values, indices, W_dec, b_dec: sorted codes of a random row, as TopK makes them."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    codes = top_k(randn(batch, d_sae), k)
    return randn(batch, d_out), codes.values, codes.indices, randn(d_sae, d_out), randn(d_out)


def cumulative_errors(x, values, indices, W_dec, b_dec, budgets=None):
    """Every reconstruction at once: `batch * k * d_out` numbers."""
    x_hat = b_dec + (W_dec[indices] * values[..., None]).cumsum(1)
    errors = (x_hat - x[:, None]).pow(2).sum(-1).mean(0)
    return errors if budgets is None else errors[torch.tensor(budgets) - 1]


def gradients(errors_of, inputs, budgets):
    """Gradients of a random weighting of the errors, one weight a budget and some of them zero."""
    x, values, indices, W_dec, b_dec = inputs
    leaves = [t.clone().requires_grad_() for t in (x, values, W_dec, b_dec)]
    errors = errors_of(leaves[0], leaves[1], indices, leaves[2], leaves[3], budgets)
    weights = torch.randn(len(errors), generator=torch.Generator().manual_seed(1)).to(errors)
    weights[1::3] = 0
    return torch.autograd.grad((errors * weights).sum(), leaves)


@shapes
def test_errors_and_gradients_equal_those_of_every_reconstruction(seed, batch, d_out, d_sae, data):
    k = data.draw(st.integers(1, d_sae))
    chosen = st.sets(st.integers(1, k), min_size=1).map(lambda s: tuple(sorted(s)))
    budgets = data.draw(st.none() | chosen)
    inputs = problem(seed, batch, d_out, d_sae, k)
    torch.testing.assert_close(nested_errors(*inputs, budgets), cumulative_errors(*inputs, budgets))
    ours = gradients(nested_errors, inputs, budgets)
    for fast, plain in zip(ours, gradients(cumulative_errors, inputs, budgets), strict=True):
        torch.testing.assert_close(fast, plain)


@given(seed=st.integers(0, 10**6), k=st.integers(1, 12))
def test_one_budget_is_the_error_of_top_k(seed, k):
    x, values, indices, W_dec, b_dec = problem(seed, 4, 5, 12, 12)
    (error,) = nested_errors(x, values, indices, W_dec, b_dec, (k,))
    codes = SparseCodes(values[:, :k], indices[:, :k], 12)
    x_hat = sparse_decode(codes, W_dec) + b_dec
    torch.testing.assert_close(error, (x - x_hat).pow(2).sum(1).mean())


@given(seed=st.integers(0, 10**6), j=st.integers(1, 12))
def test_a_budget_of_a_larger_run_is_a_run_of_that_budget(seed, j):
    x, values, indices, W_dec, b_dec = problem(seed, 4, 5, 12, 12)
    large = nested_errors(x, values, indices, W_dec, b_dec)
    small = nested_errors(x, values[:, :j], indices[:, :j], W_dec, b_dec)
    torch.testing.assert_close(large[:j], small)


def test_order_matters_to_every_budget_but_the_last():
    x, values, indices, W_dec, b_dec = problem(0, 6, 5, 12, 8)
    sorted_errors = nested_errors(x, values, indices, W_dec, b_dec)
    turned = nested_errors(x, values.flip(1), indices.flip(1), W_dec, b_dec)
    assert ((sorted_errors - turned)[:-1].abs() > 1e-3).all()
    torch.testing.assert_close(sorted_errors[-1], turned[-1])


def test_a_repeated_index_adds_up():
    x, values, indices, W_dec, b_dec = problem(1, 3, 4, 6, 5)
    inputs = (x, values, indices.clone().fill_(2), W_dec, b_dec)
    torch.testing.assert_close(nested_errors(*inputs), cumulative_errors(*inputs))
    ours = gradients(nested_errors, inputs, None)
    for fast, plain in zip(ours, gradients(cumulative_errors, inputs, None), strict=True):
        torch.testing.assert_close(fast, plain)


@pytest.mark.parametrize("budgets", [None, (2, 5)])
def test_gradcheck(budgets):
    x, values, indices, W_dec, b_dec = problem(2, 3, 4, 7, 6)
    leaves = [t.requires_grad_() for t in (x, values, W_dec, b_dec)]

    def errors(x, values, W_dec, b_dec):
        return nested_errors(x, values, indices, W_dec, b_dec, budgets)

    assert torch.autograd.gradcheck(errors, leaves)


def test_entries_beyond_the_last_budget_get_no_gradient():
    inputs = problem(3, 4, 5, 10, 8)
    grad_values = gradients(nested_errors, inputs, (3,))[1]
    assert (grad_values[:, :3] != 0).all()
    assert (grad_values[:, 3:] == 0).all()


@pytest.mark.parametrize("i", [0, 1, 3, 4])
def test_one_input_at_a_time(i):
    inputs = problem(4, 4, 5, 10, 8)
    inputs[i].requires_grad_()
    ours = torch.autograd.grad(nested_errors(*inputs).mean(), inputs[i])
    expected = torch.autograd.grad(cumulative_errors(*inputs).mean(), inputs[i])
    torch.testing.assert_close(ours, expected)


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_the_budgets():
    inputs = problem(5, 10, 16, 80, 64, dtype=torch.float32)
    x, values, indices, W_dec, b_dec = (t.clone() for t in inputs)
    for leaf in (x, values, W_dec, b_dec):
        leaf.requires_grad_()
    for budgets in ((64,), None):
        sizes = []
        with saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.nbytes) or t, lambda t: t):
            nested_errors(x, values, indices, W_dec, b_dec, budgets)
        assert sum(sizes) == values.nbytes + indices.nbytes + W_dec.nbytes + x.nbytes


def test_autocast_changes_nothing():
    inputs = problem(6, 4, 8, 20, 6, dtype=torch.float32)
    expected, expected_gradients = nested_errors(*inputs), gradients(nested_errors, inputs, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nested_errors(*inputs), expected)
        found = gradients(nested_errors, inputs, None)
    assert all(torch.equal(a, b) for a, b in zip(found, expected_gradients, strict=True))


def test_half_precision_inputs_are_summed_in_float32():
    x, values, indices, W_dec, b_dec = problem(7, 4, 8, 20, 6, dtype=torch.float32)
    half = [t.bfloat16() for t in (x, values, W_dec, b_dec)]
    half[2].requires_grad_()
    errors = nested_errors(half[0], half[1], indices, half[2], half[3])
    exact = [t.detach().double() for t in half]
    expected = cumulative_errors(exact[0], exact[1], indices, exact[2], exact[3])
    assert errors.dtype == torch.float32
    torch.testing.assert_close(errors, expected.float())
    errors.sum().backward()
    assert half[2].grad is not None
    assert half[2].grad.dtype == torch.bfloat16


@pytest.mark.parametrize("budgets", [(), (0, 2), (2, 2), (3, 1), (2, 7)])
def test_budgets_that_do_not_increase_within_the_entries_are_refused(budgets):
    with pytest.raises(UsageError, match=r"must be strictly increasing numbers within 1\.\.6"):
        nested_errors(*problem(8, 2, 3, 9, 6), budgets)

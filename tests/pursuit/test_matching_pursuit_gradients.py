"""Matching pursuit's backward pass: exact, within its memory, and in full precision."""

import pytest
import torch
from pursuit.pursuit_cases import both_ways, correlations_by, problem, shapes
from torch.autograd.graph import saved_tensors_hooks

from saelab.pursuit.matching_pursuit import Pursuit, matching_pursuit


def plain_loop(x, atoms, n_steps, threshold=0.0):
    """The definition, differentiated by autograd: it keeps every residual."""
    residual, values, indices = x, [], []
    for _ in range(n_steps):
        chosen = (residual.detach() @ atoms.detach().T).argmax(dim=1)
        going = residual.detach().norm(dim=1) > threshold
        c = (residual * atoms[chosen]).sum(1).relu() * going
        residual = residual - c[:, None] * atoms[chosen]
        values.append(c)
        indices.append(chosen)
    return Pursuit(torch.stack(values, 1), torch.stack(indices, 1), residual)


def gradients(pursue, x, atoms):
    """Gradients in x and atoms of a random linear function of both outputs."""
    x, atoms = x.clone().requires_grad_(), atoms.clone().requires_grad_()
    pursuit = pursue(x, atoms)
    generator = torch.Generator().manual_seed(1)
    outputs = (pursuit.values, pursuit.residual)
    weights = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in outputs]
    return torch.autograd.grad(outputs, (x, atoms), weights)


@both_ways
@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_backward_equals_autograd_through_the_plain_loop(gram, threshold):
    x, atoms = problem(6, batch=30, d_in=6, d_sae=12)

    def fast(x, atoms):
        return matching_pursuit(x, atoms, 8, residual_threshold=threshold)

    def plain(x, atoms):
        return plain_loop(x, atoms, 8, threshold)

    with correlations_by(gram=gram):
        pursuit, expected = fast(x, atoms), plain(x, atoms)
        torch.testing.assert_close(pursuit.values, expected.values)
        torch.testing.assert_close(pursuit.residual, expected.residual)
        # The case has what is hard: repeats, and with a threshold rows that stop.
        repeats = pursuit.indices[:, :, None] == pursuit.indices[:, None, :]
        repeats &= ((pursuit.values > 0)[:, None] & (pursuit.values > 0)[..., None]).tril(-1)
        assert repeats.any()
        assert (pursuit.values == 0).any() == (threshold > 0)
        for ours, theirs in zip(gradients(fast, x, atoms), gradients(plain, x, atoms), strict=True):
            torch.testing.assert_close(ours, theirs)


@shapes
def test_backward_equals_autograd_through_the_same_steps(seed, batch, d_in, d_sae, n_steps):
    x, atoms = problem(seed, batch, d_in, d_sae)
    fixed = matching_pursuit(x, atoms, n_steps)

    def same_steps(x, atoms):
        residual, values = x, []
        for c, j in zip(fixed.values.T, fixed.indices.T, strict=True):
            values.append((residual * atoms[j]).sum(1) * (c > 0))
            residual = residual - values[-1][:, None] * atoms[j]
        return Pursuit(torch.stack(values, 1), fixed.indices, residual)

    ours = gradients(lambda x, atoms: matching_pursuit(x, atoms, n_steps), x, atoms)
    for fast, plain in zip(ours, gradients(same_steps, x, atoms), strict=True):
        torch.testing.assert_close(fast, plain)


def test_gradcheck_through_both_outputs():
    x, atoms = problem(7, batch=3, d_in=4, d_sae=7)

    def outputs(x, atoms):
        pursuit = matching_pursuit(x, atoms, 5, residual_threshold=0.3)
        return pursuit.values, pursuit.residual

    assert torch.autograd.gradcheck(outputs, (x.requires_grad_(), atoms.requires_grad_()))


@pytest.mark.parametrize("output", ["values", "residual"])
def test_one_output_and_one_input_at_a_time(output):
    x, atoms = problem(8, batch=5, d_in=4, d_sae=9)
    leaves = x.clone().requires_grad_(), atoms.clone().requires_grad_()
    total = getattr(plain_loop(*leaves, 4), output).pow(2).sum()
    expected = torch.autograd.grad(total, leaves)
    for i in range(2):
        inputs = [x.clone(), atoms.clone()]
        inputs[i].requires_grad_()
        getattr(matching_pursuit(inputs[0], inputs[1], 4), output).pow(2).sum().backward()
        torch.testing.assert_close(inputs[i].grad, expected[i])
        assert inputs[1 - i].grad is None


def test_what_is_kept_for_the_backward_pass_grows_only_by_the_codes():
    x, atoms = problem(9, batch=10, d_in=32, d_sae=48, dtype=torch.float32)
    kept = {}
    for n_steps in (4, 64):
        sizes = []
        with saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.nbytes) or t, lambda t: t):
            matching_pursuit(x.requires_grad_(), atoms.requires_grad_(), n_steps)
        kept[n_steps] = sum(sizes)
    assert kept[4] == atoms.nbytes + x.nbytes + 10 * 4 * (4 + 8)
    assert kept[64] - kept[4] == 10 * 60 * (4 + 8)


# Precision


def test_autocast_changes_nothing():
    x, atoms = problem(10, batch=20, d_in=16, d_sae=64, dtype=torch.float32)

    def pursue(x, atoms):
        return matching_pursuit(x, atoms, 6)

    expected, expected_gradients = pursue(x, atoms), gradients(pursue, x, atoms)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ atoms.T).dtype == torch.bfloat16
        pursuit, found = pursue(x, atoms), gradients(pursue, x, atoms)
    assert torch.equal(pursuit.indices, expected.indices)
    assert torch.equal(pursuit.values, expected.values)
    assert all(torch.equal(a, b) for a, b in zip(found, expected_gradients, strict=True))


def test_half_precision_inputs_are_worked_on_in_float32():
    x, atoms = problem(11, batch=4, d_in=8, d_sae=16, dtype=torch.float32)
    x, atoms = x.bfloat16().requires_grad_(), atoms.bfloat16()
    pursuit = matching_pursuit(x, atoms, 5)
    assert pursuit.values.dtype == pursuit.residual.dtype == torch.float32
    expected = matching_pursuit(x.float(), atoms.float(), 5)
    assert torch.equal(pursuit.values, expected.values)
    pursuit.residual.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16

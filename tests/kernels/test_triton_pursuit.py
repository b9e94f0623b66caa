"""The pursuit's kernels against the pursuit that torch makes, under the interpreter."""

import pytest
import torch
from kernels.triton_device import DEVICE

from saelab.kernels import triton_pursuit
from saelab.pursuit import matching_pursuit as module
from saelab.pursuit.matching_pursuit import matching_pursuit


@pytest.fixture
def by_kernels(monkeypatch):
    """Let pursuits in float32 run by kernels, as they do on a GPU."""
    monkeypatch.setattr(module, "runs_triton", lambda t: t.dtype == torch.float32)
    monkeypatch.setattr(module, "GRAM_UPDATE_COST", 10**9)


def case(batch=3, d_in=20, d_sae=70, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, d_in, generator=generator)
    atoms = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    return x.to(DEVICE), atoms.to(DEVICE)


def pursued(x, atoms, n_steps, dtype, **options):
    """Values, indices, residual, and the gradients of a function of values and residual."""
    x, atoms = (t.to(dtype, copy=True).requires_grad_() for t in (x, atoms))
    done = matching_pursuit(x, atoms, n_steps, **options)
    loss = done.residual.sin().sum() + (done.values * torch.arange(n_steps, device=DEVICE)).sum()
    loss.backward()
    return [t.detach().double() for t in (done.values, done.indices, done.residual)] + [
        x.grad.double(),
        atoms.grad.double(),
    ]


@pytest.mark.parametrize("rows_bytes", [2**28, 2 * 4 * 5 * 20])
def test_steps_and_gradients_are_those_of_float64(by_kernels, monkeypatch, rows_bytes):
    """Also where the way back is cut into pieces of two rows."""
    monkeypatch.setattr(triton_pursuit, "ROWS_BYTES", rows_bytes)
    x, atoms = case()
    ours = pursued(x, atoms, 5, torch.float32)
    assert ours[0].min() > 0
    for a, b in zip(ours, pursued(x, atoms, 5, torch.float64), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_rows_at_the_threshold_stop_and_the_others_go_on(by_kernels):
    x, atoms = case()
    x[1] *= 1e-3
    values, *rest = pursued(x, atoms, 3, torch.float32, residual_threshold=0.1)
    assert not values[1].any()
    assert values[0].min() > 0
    expected = pursued(x, atoms, 3, torch.float64, residual_threshold=0.1)
    torch.testing.assert_close(values, expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rest[-1], expected[-1], atol=1e-5, rtol=1e-5)


def test_of_equal_atoms_the_first_is_taken_and_a_broken_row_stays_visible(by_kernels):
    x, atoms = case(d_sae=3)
    atoms[2] = atoms[1] = x[0] / x[0].norm()
    x[2, 4] = torch.nan
    done = matching_pursuit(x, atoms, 1)
    assert int(done.indices[0, 0]) == 1
    assert done.values[2].isnan().all()
    assert done.residual[2].isnan().all()
    assert not done.residual[:2].isnan().any()


def test_gradients_that_arrive_transposed_are_no_others(by_kernels):
    """As those of a loss of the residual's transpose do; so with atoms that are a transpose."""
    x, atoms = case()
    gradients = []
    for dtype in (torch.float32, torch.float64):
        a, b = (t.to(dtype, copy=True).requires_grad_() for t in (x, atoms.T.contiguous()))
        matching_pursuit(a, b.T, 4).residual.T.flatten().sin().sum().backward()
        gradients.append([t.grad.double() for t in (a, b)])
    for ours, exact in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, exact, atol=1e-5, rtol=1e-5)

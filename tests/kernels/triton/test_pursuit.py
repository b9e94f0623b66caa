"""The pursuit's kernels against the pursuit that torch makes, under the interpreter."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernels.triton_device import DEVICE

from saelab.kernels.sizes import gram_pays
from saelab.kernels.triton.pursuit import gram
from saelab.kernels.triton.pursuit import steps as kernels
from saelab.pursuit import matching_pursuit as matching
from saelab.pursuit import steps
from saelab.pursuit.matching_pursuit import matching_pursuit


@pytest.fixture(params=[False, True], ids=["anew", "on-chip"])
def by_kernels(monkeypatch, request):
    """Let pursuits in float32 run by kernels, as they do on a GPU."""
    for module in (steps, matching):
        monkeypatch.setattr(module, "runs_triton", lambda t: t.dtype == torch.float32)
    monkeypatch.setattr(steps, "gram_pays", lambda *_args, **_options: request.param)
    monkeypatch.setattr(steps, "GRAM_UPDATE_COST", 10**9)


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
    monkeypatch.setattr(kernels, "ROWS_BYTES", rows_bytes)
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


def regret(x, atoms, values, indices):
    """How far a step's correlation is at most from the best one; what all steps leave.

    In lengths of the row, by replaying the steps in float64. What a value lacks counts too.
    """
    left, worst = x.double(), 0.0
    for value, index in zip(values.double().T, indices.T, strict=True):
        correlations = left @ atoms.double().T
        chosen = correlations.gather(1, index[:, None])[:, 0]
        off = torch.where(value > 0, value - chosen, 0).abs()
        missed = correlations.amax(1).relu() - value
        worst = max(worst, float((torch.stack([off, missed]) / x.double().norm(dim=1)).max()))
        left = left - value[:, None] * atoms[index].double()
    return worst, left


@given(
    seed=st.integers(0, 10**6), batch=st.integers(1, 4), d_in=st.integers(1, 40),
    d_sae=st.integers(1, 90), n_steps=st.integers(1, 9),
)  # fmt: skip
@example(seed=0, batch=3, d_in=26, d_sae=2, n_steps=3)
@example(seed=1, batch=3, d_in=26, d_sae=2, n_steps=4)
@settings(max_examples=15)
def test_on_the_chip_every_step_takes_the_best_atom(seed, batch, d_in, d_sae, n_steps):
    """For any shape, whether it is a power of two, and in pieces of two rows."""
    x, atoms = case(batch, d_in, d_sae, seed)
    left, values = x.clone(), x.new_zeros(batch, n_steps)
    indices = torch.zeros_like(values, dtype=torch.long)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gram, "CHUNK_BYTES", 2 * 4 * d_sae)
        gram.pursue_rows(left, atoms, atoms, (values, indices), 0.0)
    worst, rest = regret(x, atoms, values, indices)
    assert worst < 1e-5
    torch.testing.assert_close(left.double(), rest, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("on_chip", [False, True], ids=["anew", "on-chip"])
def test_under_autocast_a_choice_is_nearly_the_best(monkeypatch, on_chip):
    """On the chip it stays within float16's rounding of the row, over all steps."""
    monkeypatch.setattr(steps, "runs_triton", lambda _: True)
    monkeypatch.setattr(steps, "gram_pays", lambda *_args, **_options: on_chip)
    x, atoms = case(batch=4, d_in=32, d_sae=200)
    x *= 1e6
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        found = matching_pursuit(x, atoms, 12)
    worst, _ = regret(x, atoms, found.values, found.indices)
    assert worst < (2**-12 if on_chip else 2**-8)
    assert found.values.min() > 0


@pytest.mark.parametrize(
    ("batch", "d_sae", "n_steps", "rounds", "pays"),
    [
        (8192, 32768, 32, True, True),
        (8192, 32769, 32, True, False),  # the registers do not hold a row
        (8192, 32768, 32, False, False),  # the matrix takes 4 GiB
        (8192, 16384, 32, False, True),
        (8192, 32768, 4, True, False),  # too few steps to pay for the matrix
        (100, 8192, 32, True, False),  # too few rows
    ],
)
def test_the_matrix_is_made_where_it_saves_products(batch, d_sae, n_steps, rounds, pays):
    assert gram_pays(batch, d_sae, n_steps, rounds=rounds) == pays

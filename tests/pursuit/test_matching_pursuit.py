"""Matching pursuit against its laws, step by step and when it stops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pursuit.pursuit_cases import (
    Recorder,
    both_ways,
    correlations_by,
    dense,
    orthonormal,
    problem,
    replay,
    shapes,
)

from saelab.pursuit import steps
from saelab.pursuit.matching_pursuit import matching_pursuit, merged
from saelab.pursuit.select import top_k

# The laws of a pursuit


@both_ways
@shapes
def test_the_residual_is_what_the_codes_leave(gram, seed, batch, d_in, d_sae, n_steps):
    x, atoms = problem(seed, batch, d_in, d_sae)
    with correlations_by(gram=gram):
        pursuit = matching_pursuit(x, atoms, n_steps)
    torch.testing.assert_close(pursuit.residual, x - dense(pursuit, d_sae) @ atoms)


@both_ways
@shapes
def test_every_step_takes_the_best_atom(gram, seed, batch, d_in, d_sae, n_steps):
    x, atoms = problem(seed, batch, d_in, d_sae)
    with correlations_by(gram=gram):
        pursuit = matching_pursuit(x, atoms, n_steps)
    for t, residual in enumerate(replay(x, atoms, pursuit)[:-1]):
        best = (residual @ atoms.T).amax(1).relu()
        torch.testing.assert_close(pursuit.values[:, t], best, atol=1e-12, rtol=1e-12)


@shapes
def test_a_step_takes_its_value_squared_out_of_the_energy(seed, batch, d_in, d_sae, n_steps):
    x, atoms = problem(seed, batch, d_in, d_sae)
    pursuit = matching_pursuit(x, atoms, n_steps)
    energy = torch.stack([r.pow(2).sum(1) for r in replay(x, atoms, pursuit)], dim=1)
    torch.testing.assert_close(energy[:, 1:], energy[:, :-1] - pursuit.values.pow(2))
    assert (energy.diff(dim=1) <= 1e-12).all()


@shapes
def test_after_a_step_the_residual_is_orthogonal_to_its_atom(seed, batch, d_in, d_sae, n_steps):
    x, atoms = problem(seed, batch, d_in, d_sae)
    pursuit = matching_pursuit(x, atoms, n_steps)
    after = torch.stack(replay(x, atoms, pursuit)[1:], dim=1)
    left = (after * atoms[pursuit.indices]).sum(-1)[pursuit.values > 0]
    assert (left.abs() <= 1e-12).all()


@both_ways
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_the_first_steps_are_those_of_a_shorter_pursuit(gram, threshold):
    x, atoms = problem(0, batch=6, d_in=8, d_sae=24)
    with correlations_by(gram=gram):
        long = matching_pursuit(x, atoms, 12, residual_threshold=threshold)
        for t in range(1, 12):
            short = matching_pursuit(x, atoms, t, residual_threshold=threshold)
            fires = short.values > 0
            assert torch.equal(short.values, long.values[:, :t])
            assert torch.equal(short.indices[fires], long.indices[:, :t][fires])


@given(seed=st.integers(0, 10**6), n=st.integers(1, 8), data=st.data())
def test_orthonormal_atoms_give_rectified_top_k(seed, n, data):
    k = data.draw(st.integers(1, n))
    x, atoms = problem(seed, 4, n, n)[0], orthonormal(seed, n)
    codes = merged(matching_pursuit(x, atoms, k), n)
    torch.testing.assert_close(codes.dense(), top_k(x @ atoms.T, k).dense())


@given(seed=st.integers(0, 10**6), d_in=st.integers(2, 8), d_sae=st.integers(1, 20))
def test_one_step_is_tied_top_1(seed, d_in, d_sae):
    x, atoms = problem(seed, 5, d_in, d_sae)
    codes = merged(matching_pursuit(x, atoms, 1), d_sae)
    torch.testing.assert_close(codes.dense(), top_k(x @ atoms.T, 1).dense())


def test_an_atom_can_be_chosen_again_and_the_row_goes_on():
    # At 120 degrees, taking one atom out puts half as much of the other in.
    atoms = torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5]], dtype=torch.float64)
    pursuit = matching_pursuit(torch.tensor([[2.0, 1.75]]).double() @ atoms, atoms, 4)
    assert pursuit.indices.tolist() == [[0, 1, 0, 1]]
    assert pursuit.values.tolist() == [pytest.approx([1.125, 1.3125, 0.65625, 0.328125])]


# Stopping


def test_a_row_with_no_positive_correlation_takes_no_step():
    atoms = torch.eye(3)
    x = torch.tensor([[-1.0, -2.0, -3.0], [0.0, 0.0, 0.0], [-1.0, 2.0, -3.0]])
    pursuit = matching_pursuit(x, atoms, 2)
    assert pursuit.values.tolist() == [[0, 0], [0, 0], [2, 0]]
    assert pursuit.residual.tolist() == [[-1, -2, -3], [0, 0, 0], [-1, 0, -3]]


def test_a_row_at_the_threshold_takes_no_step():
    x = torch.tensor([[3.0, 4.0], [3.0, 4.5]])
    pursuit = matching_pursuit(x, torch.eye(2), 2, residual_threshold=5.0)
    assert pursuit.values.tolist() == [[0, 0], [4.5, 0]]
    assert pursuit.residual.tolist() == [[3, 4], [3, 0]]


@both_ways
def test_a_row_steps_exactly_while_it_is_above_the_threshold(gram):
    x, atoms = problem(3, batch=40, d_in=8, d_sae=24)
    with correlations_by(gram=gram):
        pursuit = matching_pursuit(x, atoms, 10, residual_threshold=0.8)
    before = torch.stack(replay(x, atoms, pursuit)[:-1], dim=1).norm(dim=-1)
    assert torch.equal(pursuit.values > 0, before > 0.8)
    assert len((pursuit.values > 0).sum(1).unique()) > 5


def test_the_loop_ends_when_every_row_has_stopped():
    counts = []
    for n_steps in (50, 500):
        with Recorder() as recorder:
            pursuit = matching_pursuit(torch.ones(2, 3), torch.eye(3), n_steps)
        assert pursuit.values.shape == (2, n_steps)
        assert pursuit.values.sum() == 6
        counts.append(recorder.names.count("max"))
    assert counts[0] == counts[1] < 10


def test_a_batch_without_rows_is_no_problem():
    x, atoms = problem(0, batch=0, d_in=3, d_sae=5)
    pursuit = matching_pursuit(x, atoms, 4)
    assert pursuit.values.shape == pursuit.indices.shape == (0, 4)
    assert merged(pursuit, 5).dense().shape == (0, 5)


def test_a_row_does_not_depend_on_the_rest_of_its_batch():
    x, atoms = problem(4, batch=7, d_in=6, d_sae=15)
    together = matching_pursuit(x, atoms, 5)
    for i in range(7):
        alone = matching_pursuit(x[i : i + 1], atoms, 5)
        torch.testing.assert_close(alone.values[0], together.values[i])
        assert torch.equal(alone.indices[0], together.indices[i])


def test_a_broken_row_stays_visible():
    x, atoms = problem(5, batch=2, d_in=4, d_sae=6)
    x[0, 0] = torch.nan
    pursuit = matching_pursuit(x, atoms, 3, residual_threshold=0.1)
    assert pursuit.residual[0].isnan().any()
    assert pursuit.residual[1].isfinite().all()


# The two steps to keep correlations


def test_the_gram_matrix_replaces_a_product_per_step():
    x, atoms = problem(12, batch=50, d_in=16, d_sae=40)
    found = {}
    for gram in (False, True):
        with correlations_by(gram=gram), Recorder() as recorder:
            found[gram] = matching_pursuit(x, atoms, 9)
        assert recorder.names.count("mm") == (2 if gram else 9)
    assert torch.equal(found[True].indices, found[False].indices)
    torch.testing.assert_close(found[True].values, found[False].values)


@pytest.mark.parametrize(
    ("batch", "d_in", "n_steps", "limit", "pays"),
    [
        (64, 128, 20, 2**30, True),
        (64, 128, 20, 4 * 32**2 - 1, False),  # the matrix does not fit
        (64, 128, 1, 2**30, False),  # one step never updates
        (1, 128, 20, 2**30, False),  # one row cannot pay for it
        (64, 16, 20, 2**30, False),  # a product over 16 numbers costs less than an update
    ],
)
def test_the_gram_matrix_is_built_where_it_pays(monkeypatch, batch, d_in, n_steps, limit, pays):
    monkeypatch.setattr(steps, "GRAM_LIMIT_BYTES", limit)
    x, atoms = problem(13, batch, d_in, 32, dtype=torch.float32)
    with Recorder() as recorder:
        matching_pursuit(x, atoms, n_steps)
    assert ("index_select" in recorder.names) == pays


def test_under_autocast_only_the_choice_is_coarse():
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(40, 16, generator=generator), dim=1)
    x = torch.randn(30, 16, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = matching_pursuit(x, atoms, 3)
    assert found.values.dtype == torch.float32
    residual = x.clone()
    for t in range(3):
        w = atoms[found.indices[:, t]]
        exact = (residual * w).sum(1)
        torch.testing.assert_close(found.values[:, t], exact)
        best = (residual @ atoms.T).max(dim=1).values
        assert (exact > best - 0.03 * residual.norm(dim=1)).all()
        residual -= exact[:, None] * w
    torch.testing.assert_close(found.residual, residual)

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from saelab.config import UsageError
from saelab.pursuit.greedy import RULES, orthogonal_pursuit

shapes = given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 4),
    d_in=st.integers(1, 8),
    d_sae=st.integers(1, 16),
)


def planted(seed: int, batch: int, d_in: int, d_sae: int):
    g = torch.Generator().manual_seed(seed)
    atoms = torch.randn(d_sae, d_in, generator=g, dtype=torch.float64)
    atoms *= 0.5 + torch.rand(d_sae, 1, generator=g, dtype=torch.float64)
    return torch.randn(batch, d_in, generator=g, dtype=torch.float64), atoms


def by_hand(x, atoms, k):
    """One row's pursuit by numpy: the largest correlation with the residual, then least squares."""
    unit = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    chosen, residual, z = [], x, np.zeros(0)
    for _ in range(k):
        c = np.abs(unit @ residual)
        c[chosen] = 0
        chosen.append(int(c.argmax()))
        z = np.linalg.lstsq(atoms[chosen].T, x, rcond=None)[0]
        residual = x - z @ atoms[chosen]
    return chosen, z


@shapes
def test_every_rule_without_a_penalty_is_orthogonal_matching_pursuit(seed, batch, d_in, d_sae):
    x, atoms = planted(seed, batch, d_in, d_sae)
    k = min(d_in, d_sae, 5)
    for rule in RULES:
        codes = orthogonal_pursuit(x, atoms, k, rule=rule)
        for row in range(batch):
            chosen, z = by_hand(x[row].numpy(), atoms.numpy(), k)
            want = torch.zeros(d_sae, dtype=x.dtype)
            want[chosen] = torch.from_numpy(z)
            torch.testing.assert_close(codes.dense()[row] @ atoms, want @ atoms)


@shapes
def test_what_is_left_is_orthogonal_to_what_was_chosen(seed, batch, d_in, d_sae):
    x, atoms = planted(seed, batch, d_in, d_sae)
    codes = orthogonal_pursuit(x, atoms, min(3, d_sae))
    residual = x - codes.dense() @ atoms
    touching = (residual @ atoms.T)[codes.dense() != 0]
    assert touching.abs().max() < 1e-8
    distinct = [
        len(set(i[v != 0].tolist())) for i, v in zip(codes.indices, codes.values, strict=True)
    ]
    assert distinct == (codes.values != 0).sum(1).tolist()


@pytest.mark.parametrize("rule", RULES)
def test_a_gain_is_what_the_best_coefficient_takes_off_the_objective(rule):
    g = torch.Generator().manual_seed(0)
    r = torch.randn(5, generator=g, dtype=torch.float64)
    atoms = F.normalize(torch.randn(40, 5, generator=g, dtype=torch.float64), dim=1)
    weights, lam = 0.2 + torch.rand(40, generator=g, dtype=torch.float64), 0.7
    cost = lam * (weights.square() if "l0" in rule else weights)
    gains = RULES[rule]((r @ atoms.T).abs()[None], r.norm()[None, None], cost)[0]
    t = torch.linspace(-4, 4, 80_001, dtype=torch.float64)
    for j in range(40):
        rest = (r - t[:, None] * atoms[j]).norm(dim=1)
        size = t.abs() if "l1" in rule else (t != 0).double()
        objective = (rest if "sqrt" in rule else rest.square()) + cost[j] * size
        before = r.norm() if "sqrt" in rule else r.norm().square()
        assert abs(float((before - objective.min()).clamp_min(0) - gains[j])) < 1e-6


def test_sparse_codes_in_a_wide_dictionary_are_found_exactly():
    g = torch.Generator().manual_seed(1)
    atoms = torch.randn(200, 64, generator=g)
    z = torch.zeros(50, 200)
    for row in z:
        row[torch.randperm(200, generator=g)[:5]] = 1 + torch.rand(5, generator=g)
    codes = orthogonal_pursuit(z @ atoms, atoms, 5)
    found = ((codes.dense() - z).abs().amax(1) < 1e-3).float().mean()
    assert found > 0.9


def test_a_penalty_stops_a_row_and_a_weight_keeps_an_atom_out():
    atoms = torch.eye(3)
    x = torch.tensor([[3.0, 1.0, 0.2]])
    assert orthogonal_pursuit(x, atoms, 3, penalty=0.5).dense().tolist() == [[3.0, 1.0, 0.0]]
    weights = torch.tensor([10.0, 1.0, 1.0])
    kept = orthogonal_pursuit(x, atoms, 3, penalty=0.5, weights=weights)
    assert kept.dense().tolist() == [[0.0, 1.0, 0.0]]


def test_rows_that_need_no_more_atoms_stop():
    atoms = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    codes = orthogonal_pursuit(torch.tensor([[4.0, 0.0], [0.0, 0.0]]), atoms, 3)
    assert (codes.dense() @ atoms).tolist() == [[4.0, 0.0], [0.0, 0.0]]
    assert codes.active.sum(1).tolist() == [1, 0]


def non_negative(x, atoms):
    """The least squares of one row with coefficients >= 0: the best of all sets of atoms."""
    best, found = float(x @ x), np.zeros(len(atoms))
    for size in range(1, len(atoms) + 1):
        for chosen in map(list, combinations(range(len(atoms)), size)):
            z = np.linalg.lstsq(atoms[chosen].T, x, rcond=None)[0]
            error = float(((x - z @ atoms[chosen]) ** 2).sum())
            if (z > 0).all() and error < best:
                best, found = error, np.bincount(chosen, z, minlength=len(atoms))
    return found


def test_non_negative_coefficients_are_the_best_of_all_sets_of_atoms():
    x, atoms = planted(3, batch=20, d_in=7, d_sae=6)
    codes = orthogonal_pursuit(x, atoms, 6, nonnegative=True)
    expected = np.stack([non_negative(row, atoms.numpy()) for row in x.numpy()])
    torch.testing.assert_close(codes.dense(), torch.from_numpy(expected))
    assert (codes.values >= 0).all()


@shapes
def test_non_negative_coefficients_are_the_best_for_the_atoms_chosen(seed, batch, d_in, d_sae):
    x, atoms = planted(seed, batch, d_in, d_sae)
    codes = orthogonal_pursuit(x, atoms, min(3, d_sae), nonnegative=True)
    for row, values, indices in zip(x, codes.values, codes.indices, strict=True):
        chosen = indices[values != 0]
        expected = non_negative(row.numpy(), atoms[chosen].numpy())
        torch.testing.assert_close(values[values != 0], torch.from_numpy(expected))


def test_each_row_may_have_its_own_number_of_atoms():
    x, atoms = planted(4, batch=4, d_in=8, d_sae=12)
    counts = torch.tensor([0, 3, 1, 5])
    codes = orthogonal_pursuit(x, atoms, counts)
    assert codes.active.sum(1).tolist() == counts.tolist()
    for row in range(1, 4):
        alone = orthogonal_pursuit(x[row : row + 1], atoms, int(counts[row]))
        torch.testing.assert_close(codes.dense()[row], alone.dense()[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": 4}, "k=4"),
        ({"k": 0}, "k=0"),
        ({"rule": "l2"}, "'l2'"),
        ({"penalty": -1.0}, "-1.0"),
        ({"atoms": torch.zeros(3, 3)}, "Atom 0"),
    ],
)
def test_what_cannot_be_pursued_is_said(change, says):
    given = {"x": torch.ones(1, 3), "atoms": torch.eye(3), "k": 1} | change
    x, atoms, k = given.pop("x"), given.pop("atoms"), given.pop("k")
    with pytest.raises(UsageError, match=says):
        orthogonal_pursuit(x, atoms, k, **given)

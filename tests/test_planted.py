"""Planted dictionaries are what they say: every claim about recovery rests on it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saelab.testing.planted import (
    LARGEST,
    MOST_OFTEN,
    SMALLEST,
    group_atoms,
    group_values,
    orthonormal_atoms,
    rows,
    tree_values,
    uneven_values,
    zipf_values,
)

small = st.integers(1, 5)


@given(n=small, more=st.integers(0, 4), seed=st.integers(0, 9))
def test_orthonormal_atoms_are_orthonormal(n, more, seed):
    atoms = orthonormal_atoms(n, n + more, seed=seed)
    torch.testing.assert_close(atoms @ atoms.T, torch.eye(n), atol=1e-5, rtol=0)


@given(n_groups=small, per_group=small, space=st.integers(1, 4), seed=st.integers(0, 9))
def test_groups_are_orthogonal_and_each_fills_only_its_own_space(n_groups, per_group, space, seed):
    atoms = group_atoms(n_groups, per_group, space=space, seed=seed)
    gram = (atoms @ atoms.T).view(n_groups, per_group, n_groups, per_group)
    for i in range(n_groups):
        for j in range(n_groups):
            if i != j:
                assert float(gram[i, :, j].abs().max()) < 1e-5
    torch.testing.assert_close(atoms.norm(dim=1), torch.ones(len(atoms)), atol=1e-5, rtol=0)
    ranks = torch.linalg.matrix_rank(atoms.view(n_groups, per_group, -1), tol=1e-4)
    assert int(ranks.max()) <= min(per_group, space)


def test_atoms_of_a_crowded_group_are_coherent():
    """Six directions in a plane: some pair is closer than a right angle, whatever the seed."""
    gram = group_atoms(1, 6, space=2, seed=3) @ group_atoms(1, 6, space=2, seed=3).T
    assert float((gram - torch.eye(6)).abs().max()) > 0.5


@given(active=st.integers(1, 4), seed=st.integers(0, 9))
def test_every_row_has_one_feature_of_each_active_group(active, seed):
    values = group_values(50, 4, 3, active=active, seed=seed).view(50, 4, 3)
    per_group = (values > 0).sum(dim=2)
    assert int(per_group.max()) == 1
    assert (per_group.sum(dim=1) == active).all()


@given(seed=st.integers(0, 9))
def test_a_child_is_on_only_with_its_parent_and_never_with_a_sibling(seed):
    values = tree_values(200, 3, 4, parent_rate=0.5, child_rate=0.5, seed=seed)
    parent, child = values[:, :3] > 0, (values[:, 3:] > 0).view(200, 3, 4)
    assert not (child.any(dim=2) & ~parent).any()
    assert int(child.sum(dim=2).max()) == 1


def test_rates_are_those_that_were_asked_for():
    values = tree_values(20_000, 4, 4, parent_rate=0.3, child_rate=0.7)
    assert float((values > 0).sum(1).float().mean()) == pytest.approx(4 * 0.3 * 1.7, rel=0.03)
    uneven = (uneven_values(20_000, 64, mean_active=4.0) > 0).sum(1).float()
    assert float(uneven.mean()) == pytest.approx(4, rel=0.05)
    # A row's rate is exponential, so the count is geometric: variance m + m^2, not the m of chance.
    assert float(uneven.var()) == pytest.approx(20, rel=0.1)


def test_values_are_in_range_and_signs_are_balanced_where_asked_for():
    values = uneven_values(5000, 16, mean_active=3.0, signed=True)
    size = values[values != 0].abs()
    assert SMALLEST <= float(size.min()) < float(size.max()) <= LARGEST
    assert float((values > 0).sum() / (values != 0).sum()) == pytest.approx(0.5, abs=0.03)
    assert (uneven_values(500, 16, mean_active=3.0) >= 0).all()


def test_rows_are_the_values_times_the_atoms_plus_noise_of_that_size():
    atoms = orthonormal_atoms(6, 8)
    values = tree_values(4000, 2, 2, parent_rate=0.5, child_rate=0.5)
    x = rows(values, atoms, noise=0.1)
    assert float((x - values @ atoms).std()) == pytest.approx(0.1, rel=0.03)
    torch.testing.assert_close(rows(values, atoms, noise=0.0), values @ atoms)


@pytest.mark.parametrize("mean_active", [0.5, 4.0, 12.0])
def test_zipf_features_are_on_as_often_as_their_rank_says(mean_active):
    on = zipf_values(40_000, 16, mean_active=mean_active) > 0
    assert float(on.sum(1).float().mean()) == pytest.approx(mean_active, rel=0.03)
    rates = on.float().mean(0)
    free = rates < MOST_OFTEN - 0.02
    ranks = torch.arange(1, 17)[free]
    torch.testing.assert_close(
        rates[free] * ranks, (rates[free] * ranks).mean().expand(len(ranks)), rtol=0.15, atol=0
    )


def test_seeds_repeat_and_differ():
    for make in (
        lambda seed: zipf_values(20, 8, mean_active=2.0, seed=seed),
        lambda seed: uneven_values(20, 8, mean_active=2.0, seed=seed),
        lambda seed: tree_values(20, 2, 3, parent_rate=0.5, child_rate=0.5, seed=seed),
        lambda seed: group_values(20, 3, 2, active=2, seed=seed),
        lambda seed: group_atoms(2, 3, space=2, seed=seed),
        lambda seed: orthonormal_atoms(2, 3, seed=seed),
    ):
        assert torch.equal(make(1), make(1))
        assert not torch.equal(make(1), make(2))

import pytest
import torch

from saelab.config import UsageError
from saelab.pursuit.shrinkage import THRESHOLDS, Stop, minimise


def planted(d_in=12, d_sae=30, batch=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    atoms = torch.randn(d_sae, d_in, generator=g, dtype=torch.float64)
    return torch.randn(batch, d_in, generator=g, dtype=torch.float64), atoms


def penalty_of(kind, z, lam, norm=1.0):
    match kind:
        case "l1":
            return lam * z.abs()
        case "l0":
            return lam * (z != 0)
        case "half":
            return lam * z.abs().sqrt()
        case _:
            far = (2 * lam) ** 0.5 / norm
            return torch.where(
                z.abs() < far, lam - norm**2 / 2 * (z.abs() - far).square(), torch.tensor(lam)
            )


@pytest.mark.parametrize("kind", THRESHOLDS)
@pytest.mark.parametrize("lam", [0.1, 0.8])
def test_a_threshold_minimises_its_penalty(kind, lam):
    step, norm = 0.7, 1.1
    z = torch.linspace(-5, 5, 200_001, dtype=torch.float64)
    for u in torch.linspace(-3, 3, 41, dtype=torch.float64):
        cost = (z - u).square() / 2 + step * penalty_of(kind, z, lam, norm)
        got = THRESHOLDS[kind](u, torch.tensor(step * lam).double(), torch.tensor(step * norm**2))
        reached = (got - u).square() / 2 + step * penalty_of(kind, got, lam, norm)
        assert float(reached) <= float(cost.min()) + 1e-9


@pytest.mark.parametrize("nonnegative", [False, True])
def test_the_lasso_agrees_with_coordinate_descent(nonnegative):
    x, atoms = planted()
    lam = 2.0
    found = minimise(x, atoms, lam, nonnegative=nonnegative, stop=Stop(1e-10, 5000))
    z = torch.zeros(len(x), len(atoms), dtype=x.dtype)
    for _ in range(500):
        for j, atom in enumerate(atoms):
            c = (x - z @ atoms + z[:, j : j + 1] * atom) @ atom
            size = (c if nonnegative else c.abs()) - lam
            z[:, j] = c.sign() * size.clamp_min(0) / atom.square().sum()
    torch.testing.assert_close(found.codes.dense(), z, atol=1e-4, rtol=1e-4)
    assert found.gap is not None
    assert found.gap <= 1e-10


def test_the_gap_is_at_least_the_distance_from_the_minimum():
    x, atoms = planted()
    least = minimise(x, atoms, 1.0, stop=Stop(1e-12, 5000)).objective
    for steps in (10, 30, 100):
        early = minimise(x, atoms, 1.0, stop=Stop(0.0, steps))
        above = ((early.objective - least) / (x.square().sum(1) / 2)).max()
        assert early.gap is not None
        assert float(above) <= early.gap + 1e-12


@pytest.mark.parametrize("kind", ["l0", "half", "cel0"])
def test_in_an_orthonormal_dictionary_one_threshold_is_the_minimum(kind):
    x, _ = planted(d_in=8)
    turn = torch.linalg.qr(planted(8, 8)[1]).Q
    found = minimise(x, turn, 0.3, kind=kind, stop=Stop(1e-12, 5000)).codes.dense()
    u, z = x @ turn.T, torch.linspace(-5, 5, 100_001, dtype=torch.float64)
    for row in range(len(x)):
        for j in range(8):
            cost = (z - u[row, j]).square() / 2 + penalty_of(kind, z, 0.3)
            reached = (found[row, j] - u[row, j]).square() / 2 + penalty_of(
                kind, found[row, j], 0.3
            )
            # The hard and half thresholds may rest at another minimum of one coefficient.
            if kind == "cel0":
                assert float(reached) <= float(cost.min()) + 1e-6
    best = minimise(x, turn, 0.3, kind=kind, stop=Stop(max_steps=5000)).objective
    assert (best <= x.square().sum(1) / 2 + 1e-9).all()


def test_no_penalty_and_an_unknown_one_are_refused():
    x, atoms = planted()
    with pytest.raises(UsageError, match="penalty=0"):
        minimise(x, atoms, 0)
    with pytest.raises(UsageError, match="'l3'"):
        minimise(x, atoms, 1, kind="l3")

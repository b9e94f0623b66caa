"""Every encoder finds planted codes, and meets the sparsity that it is asked for."""

import pytest
import torch
from torch.nn import functional as F

from saelab.config import UsageError
from saelab.pursuit.encoders import ENCODERS, calibrated
from saelab.pursuit.matching_pursuit import matching_pursuit
from saelab.types import SparseCodes

PENALISED = [name for name in ENCODERS if name not in ("omp", "mp")]


def planted(*, signed: bool, n_rows: int = 64, d_in: int = 32, d_sae: int = 48, k: int = 3):
    """Rows of k atoms of a dictionary, whose coefficients are 1 to 2 in size, and noise."""
    g = torch.Generator().manual_seed(0)
    unit = F.normalize(torch.randn(d_sae, d_in, generator=g), dim=1)
    on = torch.rand(n_rows, d_sae, generator=g).argsort(dim=1) < k
    z = on * (1 + torch.rand(n_rows, d_sae, generator=g))
    if signed:
        z = z * (1 - 2 * torch.randint(2, z.shape, generator=g))
    return z, z @ unit + 0.01 * torch.randn(n_rows, d_in, generator=g), unit


def overlap(codes: SparseCodes, z: torch.Tensor) -> float:
    """Active latents that are true, as a share of those that are either."""
    found, true = codes.dense() != 0, z != 0
    return float((found & true).sum() / (found | true).sum())


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_has_the_l0_it_is_asked_for_and_finds_the_true_latents(name, signed):
    z, x, unit = planted(signed=signed)
    encoder = calibrated(name, x, unit, 3, nonnegative=not signed)
    codes = encoder.encode(x, unit)
    assert codes.mean_l0() == pytest.approx(3, rel=0.03)
    assert signed or (codes.dense() >= 0).all()
    assert overlap(codes, z) > (0.6 if name in ("l0", "mp") else 0.8)


@pytest.mark.parametrize("name", PENALISED)
def test_the_penalty_grows_with_the_rows_as_the_objective_says(name):
    """Twice the rows have twice the codes at the penalty that the objective scales to."""
    _, x, unit = planted(signed=True)
    encoder = calibrated(name, x, unit, 3, nonnegative=False)
    power = {"omp-l1": 1, "lasso": 1, "omp-sqrt-l0": 1, "omp-sqrt-l1": 0, "half": 1.5}.get(name, 2)
    again = calibrated(name, x * 2, unit, 3, nonnegative=False)
    assert again.encode(x * 2, unit).mean_l0() == pytest.approx(3, rel=0.03)
    assert again.amount / encoder.amount == pytest.approx(2.0**power, rel=0.2)


def test_signed_matching_pursuit_subtracts_the_largest_magnitude():
    _, x, unit = planted(signed=True)
    want = torch.zeros(len(x), len(unit))
    for row, whole in enumerate(x):
        residual = whole.clone()
        for _ in range(12):
            c = unit @ residual
            best = int(c.abs().argmax())
            if want[row, best] == 0 and (want[row] != 0).sum() == 3:
                break
            residual -= c[best] * unit[best]
            want[row, best] += c[best]
    codes = calibrated("mp", x, unit, 3, nonnegative=False).encode(x, unit)
    torch.testing.assert_close(codes.dense(), want)
    assert (want < 0).any()


def test_matching_pursuit_ends_before_one_latent_too_many():
    _, x, unit = planted(signed=False)
    counts = torch.arange(len(x)) % 4
    encoder = calibrated("mp", x, unit, 3, nonnegative=True)
    codes = encoder.encode(x, unit, counts)
    assert codes.active.sum(1).tolist() == counts.tolist()
    alone = matching_pursuit(x, unit, 1)
    first = codes.dense()[counts == 1].max(1).values
    assert (first >= alone.values[counts == 1, 0] - 1e-6).all()


@pytest.mark.parametrize("name", ["omp", "mp", "lasso"])
def test_rows_in_parts_have_the_codes_of_the_whole(name, monkeypatch):
    _, x, unit = planted(signed=False)
    encoder = calibrated(name, x, unit, 3, nonnegative=True)
    whole = encoder.encode(x, unit).dense()
    monkeypatch.setattr("saelab.pursuit.encoders.MOST_BYTES", {"cpu": 60_000})
    torch.testing.assert_close(encoder.encode(x, unit).dense(), whole, atol=1e-3, rtol=1e-3)


def test_a_dear_latent_is_chosen_less_often():
    _, x, unit = planted(signed=False)
    weights = torch.ones(len(unit))
    weights[:24] = 5.0
    plain = calibrated("omp-l0", x, unit, 3, nonnegative=True).encode(x, unit)
    dear = calibrated("omp-l0", x, unit, 3, nonnegative=True, weights=weights).encode(x, unit)
    assert dear.firing_counts()[:24].sum() < 0.8 * plain.firing_counts()[:24].sum()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "omp-l3"}, "'omp-l3' is no encoder; there are omp, "),
        ({"l0": 0}, "An L0 of 0 is not possible"),
        ({"l0": 33}, "at most 32"),
        ({"name": "lasso", "weights": torch.ones(48)}, "lasso has no weights; omp-l0"),
    ],
)
def test_what_no_encoder_can_do_is_said(change, says):
    _, x, unit = planted(signed=False)
    given = {"name": "omp", "x": x, "unit": unit, "l0": 3, "nonnegative": True} | change
    with pytest.raises(UsageError, match=says):
        calibrated(**given)

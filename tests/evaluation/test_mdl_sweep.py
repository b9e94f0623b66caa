"""Description lengths of a sweep: against closed forms, laws, and the planted truth."""

import json
import math

import pytest
import torch

from saelab.activations.arrays import write_arrays
from saelab.cli import main
from saelab.drawing import figure
from saelab.evaluation.mdl_sweep import gaussian_bits, length_curve
from saelab.sae.topk import TopKConfig
from saelab.testing.planted import orthonormal_atoms, rows
from saelab.training.loop import train_many
from saelab.training.recipes import PLANTED, planted_run


def test_white_noise_costs_half_a_bit_for_every_factor_of_two():
    # R(D) = d / 2 log2(sigma^2 d / D)
    assert gaussian_bits(4.0 * torch.eye(6).double(), 6.0) == pytest.approx(6 / 2 * 2, abs=1e-9)
    assert gaussian_bits(torch.eye(6).double(), 6.0) == 0
    assert gaussian_bits(torch.zeros(3, 3).double(), 0.0) == 0
    assert gaussian_bits(torch.eye(3).double(), 0.0) == math.inf


def test_the_rate_is_the_cheapest_split_of_the_error_over_two_channels():
    variances, allowed = (9.0, 1.0), 1.5
    grid = torch.linspace(1e-6, allowed - 1e-6, 200_001, dtype=torch.float64)
    first, second = (
        (variance / part).log2().clamp_min(0) / 2
        for variance, part in zip(variances, (grid, allowed - grid), strict=True)
    )
    found = gaussian_bits(torch.diag(torch.tensor(variances)).double(), allowed)
    assert found == pytest.approx(float((first + second).min()), abs=1e-6)


def test_the_rate_does_not_depend_on_the_basis_and_falls_with_the_error():
    basis = orthonormal_atoms(5, 5).double()
    values = torch.tensor([5.0, 3.0, 1.0, 0.5, 0.1]).double()
    turned = basis.T @ torch.diag(values) @ basis
    rates = [gaussian_bits(turned, allowed) for allowed in (0.1, 0.5, 2.0, 9.0)]
    plain = [gaussian_bits(torch.diag(values), allowed) for allowed in (0.1, 0.5, 2.0, 9.0)]
    assert rates == pytest.approx(plain, abs=1e-6)
    assert sorted(rates, reverse=True) == rates


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A store of 2 of 8 orthogonal atoms, and a sweep file over width and k."""
    out = tmp_path_factory.mktemp("lengths")
    generator = torch.Generator().manual_seed(0)
    on = torch.rand(20_000, 8, generator=generator).argsort(dim=1) < 2
    x = rows(on * (0.5 + torch.rand(on.shape, generator=generator)), orthonormal_atoms(8, 8))
    store = write_arrays(out / "store", {PLANTED: x})
    base = planted_run(store, TopKConfig(d_sae=8, k=2)).model_copy(update={"n_tokens": 40_000})
    values = {
        "base": json.loads(base.to_json()),
        "grid": {"sae.d_sae": [4, 8, 32], "sae.k": [1, 2]},
    }
    (out / "sweep.json").write_text(json.dumps(values))
    return out


@pytest.mark.unchecked
def test_the_sweep_finds_the_planted_width_and_k(sweep, capsys):
    arguments = [sweep / "sweep.json", "--out", sweep / "runs", "--device", "cpu"]
    code = main(["train", "sweep", *map(str, arguments), "--description-length"])
    printed = capsys.readouterr().out
    assert code == 0
    values = json.loads((sweep / "runs" / "description_length.json").read_text())
    assert values["best"] == "d_sae8-k2"
    found = {run["name"]: run for run in values["runs"]}
    assert len(found) == 6
    for run in found.values():
        # Whoever misses more than the common FVU pays for it; the codes of who does not are all.
        assert (run["rest_bits"] > 0) == (run["fvu"] > values["fvu"] or run["name"] == "d_sae8-k2")
    (shortest,) = (line for line in printed.splitlines() if line.endswith("shortest"))
    assert shortest.split()[:3] == ["d_sae8-k2", "8", "2"]
    assert (sweep / "runs" / "description_length.html").stat().st_size > 1000


def test_only_saes_on_the_same_rows_are_compared(sweep, small_store, tmp_path, capsys):
    values = json.loads((sweep / "sweep.json").read_text())
    values["runs"] = {"other": {"data_seed": 5}}
    (tmp_path / "sweep.json").write_text(json.dumps(values))
    arguments = ["train", "sweep", str(tmp_path / "sweep.json"), "--out", str(tmp_path / "runs")]
    assert main([*arguments, "--description-length"]) == 2
    assert "the same rows" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert main([*arguments, "--fvu", "0.1"]) == 2
    assert "--description-length" in capsys.readouterr().err


def test_a_curve_draws_itself(sweep):
    store = sweep / "store"
    configs = {
        sweep / "few" / str(d): planted_run(store, TopKConfig(d_sae=d, k=2)).model_copy(
            update={"n_tokens": 4000}
        )
        for d in (8, 16)
    }
    curve = length_curve(train_many(configs, device="cpu"), device="cpu")
    picture = figure(curve)
    assert [trace["name"] for trace in picture.to_dict()["data"]] == [
        "8 latents",
        "16 latents",
        "shortest",
    ]
    assert curve.best.bits == min(run.bits for run in curve.runs)

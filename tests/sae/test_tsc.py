"""Ternary sparse coding: signs are found, and EM only climbs."""

import itertools

import pytest
import torch

from saelab.sae.context import LossContext
from saelab.sae.tsc import TSCConfig
from saelab.testing.planted import orthonormal_atoms, rows, switches
from saelab.types import ActivationBatch


def test_the_free_energy_never_falls():
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"candidates": 4, "max_active": 4, "temperature": 1.0, "forgetting": 0.0}
    sae = TSCConfig.model_validate({"d_sae": 4} | options).build(4).double()
    sae.initialise(x)
    step = sae.own_step()
    figures = [
        float(step(ActivationBatch(x), LossContext(1.0, step=n, n_steps=30)).parts["free_energy"])
        for n in range(30)
    ]
    assert min(b - a for a, b in itertools.pairwise(figures)) > -1e-9


@pytest.mark.unchecked
def test_atoms_of_either_sign_are_found_with_the_signs_of_each_row():
    values = switches(1000, 8, rate=0.25, signed=True)
    x = rows(3 * values, orthonormal_atoms(8, 12), noise=0.3)
    sae = TSCConfig(d_sae=8, candidates=5, max_active=3, forgetting=0).build(
        12, torch.Generator().manual_seed(0)
    )
    sae.initialise(x)
    step = sae.own_step()
    for number in range(60):
        step(ActivationBatch(x), LossContext(1.0, step=number, n_steps=60))
    cosine = orthonormal_atoms(8, 12) @ sae.W_dec.detach().T
    assert float(cosine.abs().max(dim=1).values.min()) > 0.98
    few = values.abs().sum(1) <= 3
    codes = sae.encode(x).dense().detach() @ cosine.sign().mul(cosine.abs() > 0.9).T
    assert float((codes.sign() == values)[few].float().mean()) > 0.99
    torch.testing.assert_close(sae.size.detach(), torch.full((8,), 3.0), atol=0.2, rtol=0)

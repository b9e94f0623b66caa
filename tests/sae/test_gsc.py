"""Spike-and-slab sparse coding: EM climbs, unit atoms change nothing, slabs are found."""

import itertools

import pytest
import torch

from saelab.sae.context import LossContext
from saelab.sae.gsc import GSCConfig
from saelab.testing.planted import orthonormal_atoms, rows, switches
from saelab.types import ActivationBatch


def begun(x, **options):
    config = GSCConfig.model_validate(options)
    sae = config.build(x.shape[1], torch.Generator().manual_seed(0)).to(x.dtype)
    sae.initialise(x)
    return sae, sae.own_step()


@pytest.fixture
def x():
    return torch.randn(40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1


EXACT = {"candidates": 4, "max_active": 4, "temperature": 1.0, "forgetting": 0.0, "d_sae": 4}


def test_the_free_energy_never_falls(x):
    _, step = begun(x, **EXACT)
    figures = [
        float(step(ActivationBatch(x), LossContext(1.0, step=n, n_steps=40)).parts["free_energy"])
        for n in range(40)
    ]
    assert min(b - a for a, b in itertools.pairwise(figures)) > -1e-9
    assert figures[-1] > figures[0] + 0.1


def test_the_slabs_are_the_moments_of_the_posterior(x):
    sae, step = begun(x, **EXACT)
    evidence = sae.evidence(x)
    joint = evidence.log_prior(sae.log_odds()) + evidence.log_likelihood()
    moments = evidence.moments(joint.softmax(1))
    on, mean = moments.on.sum(0), moments.mean.sum(0)
    step(ActivationBatch(x), LossContext(1.0))
    torch.testing.assert_close(sae.pi, on / len(x))
    # The model's atoms are unit, so the slab has their norms; its signal to noise has no unit.
    second = step.tensors()["em.second"].diagonal() / step.tensors()["em.on"]
    torch.testing.assert_close(sae.mu, step.tensors()["em.mean"] / step.tensors()["em.on"])
    torch.testing.assert_close(sae.spread, (second - sae.mu.square()).sqrt())
    ratio = sae.mu / step.tensors()["em.mean"]
    torch.testing.assert_close(ratio * step.tensors()["em.on"], torch.ones(4, dtype=x.dtype))
    assert bool((mean != 0).all())


@pytest.mark.unchecked
def test_planted_slabs_are_found():
    generator = torch.Generator().manual_seed(1)
    on = switches(3000, 6, rate=0.2)
    size = 2 + 0.5 * torch.randn(on.shape, generator=generator)
    x = rows(on * size, orthonormal_atoms(6, 10), noise=0.2) + 5
    sae, step = begun(x, d_sae=6, candidates=4, max_active=3, forgetting=0.4)
    for number in range(80):
        batch = x[(number % 3) * 1000 :][:1000]
        step(ActivationBatch(batch), LossContext(1.0, step=number, n_steps=80))
    cosine = orthonormal_atoms(6, 10) @ sae.W_dec.detach().T
    which = cosine.abs().argmax(dim=1)
    assert which.unique().numel() == 6
    assert float(cosine.abs().max(dim=1).values.min()) > 0.99
    sign = cosine.gather(1, which[:, None]).squeeze(1).sign()
    torch.testing.assert_close(
        sae.mu.detach()[which] * sign, torch.full((6,), 2.0), atol=0.2, rtol=0
    )
    torch.testing.assert_close(sae.spread.detach(), torch.full((6,), 0.5), atol=0.15, rtol=0)
    torch.testing.assert_close(sae.pi.detach(), torch.full((6,), 0.2), atol=0.04, rtol=0)
    assert float(sae.sigma.detach()) == pytest.approx(0.2, rel=0.15)

"""Truncated EM of binary sparse coding: what each step promises, and the bars test."""

import itertools

import pytest
import torch

from saelab.config import UsageError
from saelab.sae.bsc import BSCConfig
from saelab.sae.context import LossContext
from saelab.sae.truncated import CHUNK_BYTES
from saelab.testing.planted import bar_atoms, rows, switches
from saelab.types import ActivationBatch

H, D, N = 5, 4, 40
EXACT = {"candidates": H, "max_active": H, "temperature": 1.0, "forgetting": 0.0}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = draw(N, D) + 1


def begun(x=X, **options):
    config = BSCConfig.model_validate({"d_sae": H} | EXACT | options)
    sae = config.build(x.shape[1], torch.Generator().manual_seed(0)).to(x.dtype)
    sae.initialise(x)
    return sae, sae.own_step()


def states():
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=H)), dtype=X.dtype)


def posterior(sae):
    """P(state | row) over all states, by the plain density."""
    s = states()
    W = (sae.W_dec * sae.size[:, None]).detach()
    missed = (X[:, None] - sae.b_dec.detach() - s @ W).square().sum(-1)
    pi = sae.pi.detach()
    prior = s.sum(1) * pi.log() + (H - s.sum(1)) * (1 - pi).log()
    return (prior - missed / (2 * sae.sigma.detach().square())).softmax(1)


@pytest.mark.parametrize("learn_bias", [True, False])
def test_the_m_step_is_the_closed_form(learn_bias):
    sae, step = begun(learn_bias=learn_bias)
    for number in range(3):  # From different weights.
        p, s = posterior(sae), states()
        step(ActivationBatch(X), LossContext(1.0, step=number, n_steps=3))
        inputs = torch.cat([s, torch.ones(len(s), int(learn_bias), dtype=X.dtype)], dim=1)
        # Weighted least squares over every pair of a row and a state.
        root = p.flatten().sqrt()[:, None]
        pairs = X.repeat_interleave(len(s), dim=0)
        W = torch.linalg.lstsq(inputs.repeat(N, 1) * root, pairs * root).solution
        found = sae.W_dec * sae.size[:, None]
        torch.testing.assert_close(found.detach(), W[:H], atol=1e-8, rtol=1e-6)
        if learn_bias:
            torch.testing.assert_close(sae.b_dec.detach(), W[H], atol=1e-8, rtol=1e-6)
        missed = (X[:, None] - inputs @ W).square().sum(-1)
        variance = (p * missed).sum() / (N * D)
        torch.testing.assert_close(sae.sigma.detach().square(), variance)
        torch.testing.assert_close(sae.pi.detach(), (p @ s).mean())


def test_the_free_energy_never_falls():
    sae, step = begun()
    figures = [
        float(step(ActivationBatch(X), LossContext(1.0, step=n, n_steps=60)).parts["free_energy"])
        for n in range(60)
    ]
    assert min(b - a for a, b in itertools.pairwise(figures)) > -1e-9
    assert figures[-1] > figures[0] + 0.1
    torch.testing.assert_close(sae.W_dec.detach().norm(dim=1), torch.ones(H, dtype=X.dtype))


def test_the_free_energy_is_the_log_likelihood_where_no_state_is_left_out():
    sae, step = begun()
    s, W = states(), (sae.W_dec * sae.size[:, None]).detach()
    sigma, pi = sae.sigma.detach(), sae.pi.detach()
    density = torch.distributions.Normal(s @ W + sae.b_dec.detach(), sigma)
    prior = s.sum(1) * pi.log() + (H - s.sum(1)) * (1 - pi).log()
    expected = (density.log_prob(X[:, None]).sum(-1) + prior).logsumexp(1).mean()
    found = step(ActivationBatch(X), LossContext(1.0))
    torch.testing.assert_close(found.parts["free_energy"], expected)
    torch.testing.assert_close(found.total, -expected / D)


def test_batches_add_up_to_the_whole():
    """With a share of 1 / t the stored moments are the mean over all batches."""
    sae, step = begun(forgetting=1.0)
    weights = {name: value.clone() for name, value in sae.state_dict().items()}
    for number, part in enumerate(X.split(10)):
        sae.load_state_dict(weights)
        step(ActivationBatch(part), LossContext(1.0, step=number, n_steps=4))
    whole, at_once = begun()
    at_once(ActivationBatch(X), LossContext(1.0))
    for name, value in at_once.tensors().items():
        torch.testing.assert_close(step.tensors()[name], value, msg=name)
    torch.testing.assert_close(sae.W_dec, whole.W_dec)


def test_pieces_of_a_batch_are_the_batch(monkeypatch):
    whole, at_once = begun()
    at_once(ActivationBatch(X), LossContext(1.0))
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 1)
    sae, step = begun()
    assert len(list(sae.chunks(X))) == N
    step(ActivationBatch(X), LossContext(1.0))
    torch.testing.assert_close(sae.W_dec, whole.W_dec)
    assert torch.equal(sae.encode(X).indices, whole.encode(X).indices)


def test_latents_that_are_never_on_stay_where_they_are():
    sae, step = begun()
    with torch.no_grad():
        sae.size[0] = 1e6  # No row is explained by it.
    before = sae.W_dec[0].detach().clone()
    step(ActivationBatch(X), LossContext(1.0))
    torch.testing.assert_close(sae.W_dec[0].detach(), before)
    assert float(sae.size[0].detach()) == pytest.approx(1e6)


def test_it_cools_and_the_noise_fades():
    config = BSCConfig(d_sae=9, temperature=3.0, cooling=0.5, atom_noise=0.2)
    at = [config.at(LossContext(1.0, step=step, n_steps=8)) for step in (0, 2, 4, 7)]
    assert at == [(3.0, 0.2), (2.0, 0.1), (1.0, 0.0), (1.0, 0.0)]


def test_noise_on_the_atoms_is_that_of_the_step():
    sae, step = begun(atom_noise=0.5)
    again, twin = begun(atom_noise=0.5)
    for number in (0, 1):
        for each in (step, twin):
            each(ActivationBatch(X), LossContext(1.0, step=number, n_steps=9, seed=3))
    assert torch.equal(sae.W_dec, again.W_dec)
    other, quiet = begun()
    quiet(ActivationBatch(X), LossContext(1.0, n_steps=9))
    assert not torch.equal(sae.W_dec, other.W_dec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": 6}, "candidates=6 exceeds d_sae=5; lower --candidates"),
        ({"candidates": 3}, "max_active=5 exceeds candidates=3; lower --max-active"),
        (
            {"d_sae": 64, "candidates": 40, "max_active": 20},
            r"candidates=40 and max_active=20 make [\d,]+ states a row, and 2,048 is the most",
        ),
    ],
)
def test_states_that_are_too_many_are_refused_before_they_are_made(options, message):
    with pytest.raises(UsageError, match=message):
        begun(**options)


@pytest.mark.unchecked
def test_every_bar_is_found_with_its_size_and_the_models_prior_and_noise():
    """The toolkit's bars test: ten bars of ten, each on in a fifth of the rows, noise of two."""
    atoms = 10 * bar_atoms(5)
    x = rows(switches(600, 10, rate=0.2), atoms, noise=2.0)
    options = {"d_sae": 10, "candidates": 8, "max_active": 5, "learn_bias": False}
    sae, step = begun(x, **options, temperature=5.0)
    for number in range(50):
        step(ActivationBatch(x), LossContext(1.0, step=number, n_steps=50))
    found = (sae.W_dec * sae.size[:, None]).detach()
    distance = torch.cdist(atoms, found)
    assert float(distance.min(dim=1).values.max()) < 0.1 * float(atoms[0].norm())
    assert distance.argmin(dim=1).unique().numel() == 10
    assert float(sae.pi.detach()) == pytest.approx(0.2, abs=0.02)
    assert float(sae.sigma.detach()) == pytest.approx(2.0, rel=0.05)

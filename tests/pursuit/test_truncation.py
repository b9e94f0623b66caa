"""Truncated posteriors against all 2^H or 3^H states, each weighed by its plain normal density."""

import itertools
import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from saelab.pursuit.evidence import fixed_evidence, normal_evidence
from saelab.pursuit.truncation import States, n_states

H, D, N = 4, 6, 9
SIGNS = {"bsc": (1,), "tsc": (1, -1), "gsc": (1,)}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=SIGNS)
def model(request):
    return request.param


X, ATOMS = 2 * draw(N, D), torch.nn.functional.normalize(draw(H, D, seed=1), dim=1)
SIZES, MU, SPREAD = draw(H, seed=2).abs() + 0.5, draw(H, seed=3) + 1, draw(H, seed=4).abs() + 0.3
VARIANCE, LOG_ODDS = torch.tensor(0.4, dtype=torch.float64), draw(H, seed=5) - 1


def evidence(model, candidates=H, max_active=H):
    states = States.of(candidates, max_active, SIGNS[model], X)
    if model == "gsc":
        return normal_evidence(X, ATOMS, MU, SPREAD, VARIANCE, states)
    return fixed_evidence(X, ATOMS, SIZES, VARIANCE, states, by_cosine=model == "bsc")


def joint(found):
    """The states' log joint, relative to nothing on."""
    return found.log_prior(LOG_ODDS) + found.log_likelihood()


def brute(model):
    """Every state, its log joint relative to nothing on, and E[z], E[z z^T] given it."""
    signs = (0, *SIGNS[model])
    states = [s for s in itertools.product(signs, repeat=H) if any(s)]
    logs, means, seconds = [torch.zeros(N)], [torch.zeros(N, H)], [torch.zeros(N, H, H)]
    noise = VARIANCE * torch.eye(D, dtype=torch.float64)
    empty = MultivariateNormal(torch.zeros(D, dtype=torch.float64), noise).log_prob(X)
    for state in states:
        s = torch.tensor(state, dtype=torch.float64)
        prior = ((LOG_ODDS - math.log(len(SIGNS[model]))) * s.abs()).sum()
        if model == "gsc":
            A, slab = s[:, None] * ATOMS, torch.diag(s * SPREAD.square())
            covariance = noise + A.T @ slab @ A
            gain = slab @ A @ covariance.inverse()
            mean = (s * MU) + (X - (s * MU) @ A) @ gain.T
            rest = slab - gain @ A.T @ slab
            density = MultivariateNormal((s * MU) @ A, covariance)
        else:
            mean, rest = s.expand(N, H), torch.zeros(H, H)
            density = MultivariateNormal((s * SIZES) @ ATOMS, noise)
        logs.append(prior + density.log_prob(X) - empty)
        means.append(mean)
        seconds.append(mean[:, :, None] * mean[:, None, :] + rest)
    return torch.stack(logs, 1), torch.stack(means, 1), torch.stack(seconds, 1)


def test_with_all_states_the_posterior_is_exact(model):
    found, (logs, means, seconds) = evidence(model), brute(model)
    torch.testing.assert_close(joint(found).logsumexp(1), logs.logsumexp(1))
    weight = logs.softmax(1)
    moments = found.moments(joint(found).softmax(1))
    on = (weight[..., None] * (means != 0)).sum(1)
    torch.testing.assert_close(moments.on, on)
    torch.testing.assert_close(moments.mean, (weight[..., None] * means).sum(1))
    pairs = found.candidates[:, :, None] * H + found.candidates[:, None, :]
    second = torch.zeros(H * H, dtype=X.dtype)
    second.index_add_(0, pairs.flatten(), moments.products.flatten())
    second = second.view(H, H) + torch.diag(moments.squares)
    torch.testing.assert_close(second, (weight[..., None, None] * seconds).sum((0, 1)))


def test_the_best_state_is_the_best_of_all(model):
    found, (logs, means, _) = evidence(model), brute(model)
    best = means[torch.arange(N), logs.argmax(1)]
    torch.testing.assert_close(found.best(joint(found)).dense(), best)


def test_more_candidates_and_more_that_are_on_only_add_states(model):
    exact, table = brute(model)[0].logsumexp(1), {}
    for candidates, most in itertools.product(range(1, H + 1), repeat=2):
        if most <= candidates:
            found = evidence(model, candidates, most)
            table[candidates, most] = joint(found).logsumexp(1)
            n = 1 + H * len(SIGNS[model]) + n_states(candidates, most, len(SIGNS[model]))
            assert joint(found).shape == (N, n)
    for (candidates, most), bound in table.items():
        assert (bound <= exact + 1e-9).all()
        for more in ((candidates + 1, most), (candidates, most + 1)):
            assert more not in table or (table[more] >= bound - 1e-9).all()


@pytest.mark.parametrize(("candidates", "most", "signs"), [(6, 4, (1,)), (5, 3, (1, -1))])
def test_no_state_is_twice_in_the_set(candidates, most, signs):
    states = States.of(candidates, most, signs, X)
    assert (
        len(states.signed.unique(dim=1).T) == len(states) == n_states(candidates, most, len(signs))
    )
    sizes = states.signed.abs().sum(0)
    assert (int(sizes.min()), int(sizes.max())) == (2, most)
    torch.testing.assert_close(states.on, states.signed.abs())

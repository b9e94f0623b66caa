"""Newton's method ends at the minimum, however hard the columns make it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from saelab.evaluation.logistic import fit_logistic, logistic_scores
from saelab.evaluation.probe import fit_probes


def objective(x, y, weights, l2=1e-4):
    """Mean cross-entropy and the penalty on standardised weights, from raw ones."""
    scores = x @ weights[:-1] + weights[-1]
    penalty = l2 * (weights[:-1] * x.std(0)).pow(2).sum()
    return F.binary_cross_entropy_with_logits(scores, y.double()) + penalty


def draw(seed, n=60, k=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, k, generator=generator).double() * torch.tensor([1.0, 100.0, 0.01])[:k] + 5
    y = torch.rand(n, generator=generator) < 0.4
    y[:2] = torch.tensor([True, False])
    return x, y


def slope(x, y, weights):
    """The objective's gradient in standardised units, where 1 is the scale of the data."""
    weights = weights.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(x, y, weights), weights)
    return torch.cat(
        [gradient[:-1] / x.std(0) - x.mean(0) / x.std(0) * gradient[-1], gradient[-1:]]
    )


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), separable=st.booleans())
def test_the_gradient_of_the_objective_is_zero_there(seed, separable):
    x, y = draw(seed)
    if separable:
        x[:, 0] = y * 10.0 + x[:, 0] / 100
    assert slope(x, y, fit_logistic(x[None], y[None])[0]).abs().max() < 1e-4


@pytest.mark.parametrize("seed", [81, 2881])
def test_steps_that_overshoot_are_halved(seed):
    """On these heavy tails whole Newton steps never arrive."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 2, generator=generator).double() ** 5
    y = (x[:, 0] > 0.3) ^ (torch.rand(40, generator=generator) < 0.03)
    assert slope(x, y, fit_logistic(x[None], y[None])[0]).abs().max() < 1e-6


def test_many_tasks_at_once_are_each_task_alone():
    x, y = zip(*(draw(seed) for seed in range(5)), strict=True)
    together = fit_logistic(torch.stack(x), torch.stack(y))
    for i in range(5):
        alone = fit_logistic(x[i][None], y[i][None])[0]
        assert torch.allclose(
            logistic_scores(x[i][None], together[i][None]),
            logistic_scores(x[i][None], alone[None]),
            atol=1e-3,
        )


def test_it_agrees_with_the_dense_probes():
    x, y = draw(3)
    weights, bias = fit_probes(x.float(), y[:, None], iterations=300)
    expected = x.float() @ weights[:, 0] + bias
    found = logistic_scores(x[None], fit_logistic(x[None], y[None]))[0]
    assert torch.allclose(found.float(), expected, atol=0.02)


def test_one_binary_column_gives_the_log_odds():
    """Without a penalty: P(y | on) = 3/4 and P(y | off) = 1/4."""
    x = torch.tensor([1.0] * 4 + [0.0] * 4)[None, :, None]
    y = torch.tensor([True, True, True, False, True, False, False, False])[None]
    weights = fit_logistic(x, y, l2=0.0)[0]
    odds = torch.tensor([3.0, 1 / 3]).log()
    assert weights.tolist() == pytest.approx([float(odds[0] - odds[1]), float(odds[1])], abs=1e-5)


def test_a_constant_column_gets_no_weight():
    x, y = draw(1)
    x[:, 1] = 7
    weights = fit_logistic(x[None], y[None])[0]
    assert weights[1] == 0
    assert weights.isfinite().all()


def test_rescaling_and_turning_around_a_column_changes_no_score():
    x, y = draw(2)
    other = x * torch.tensor([-3.0, 0.01, 1])
    plain, scaled = (logistic_scores(c[None], fit_logistic(c[None], y[None])) for c in (x, other))
    assert torch.allclose(plain, scaled, atol=1e-4)

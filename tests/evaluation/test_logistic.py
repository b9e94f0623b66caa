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
    weights, bias = fit_probes(x.float(), y[:, None])
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


@pytest.mark.parametrize("seed", range(3))
def test_dense_probes_end_at_the_minimum(seed):
    """Columns that go together, rare labels, separable ones, and rows left out of some."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, 5, generator=generator) @ torch.randn(5, 20, generator=generator)
    x = x + 0.05 * torch.randn(400, 20, generator=generator) + 3
    y = torch.stack([x[:, 0] > 3, torch.rand(400, generator=generator) < 0.02, x[:, 1] > 6], dim=1)
    counted = torch.rand(400, 3, generator=generator) < 0.8
    y[0], counted[0] = True, True
    weights, bias = fit_probes(x, y, counted=counted)
    for i in range(3):
        here = counted[:, i]
        leaf = torch.cat([weights[:, i], bias[i : i + 1]]).double().requires_grad_()
        scores = x.double() @ leaf[:-1] + leaf[-1]
        fit = F.binary_cross_entropy_with_logits(scores[here], y[here, i].double())
        loss = fit + 1e-4 * (leaf[:-1] * x.double().std(0)).pow(2).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        by_column = gradient[:-1] / x.std(0) - x.mean(0) / x.std(0) * gradient[-1]
        assert torch.cat([by_column, gradient[-1:]]).norm() < 1e-4


def test_dense_probes_of_many_labels_are_those_of_each_alone():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=generator)
    y = torch.stack([x[:, 0] + 0.3 * x[:, i] > i / 2 for i in range(4)], dim=1)
    together, _ = fit_probes(x, y)
    for i in range(4):
        alone, _ = fit_probes(x, y[:, i : i + 1])
        torch.testing.assert_close(together[:, i], alone[:, 0], atol=0.02, rtol=0.01)


def test_a_dense_probe_ignores_a_column_that_does_not_vary():
    x, y = draw(5)
    x[:, 1] = 4
    weights, bias = fit_probes(x.float(), y[:, None])
    assert weights.isfinite().all()
    assert bias.isfinite().all()


def test_balanced_classes_are_those_of_which_the_rare_one_is_repeated():
    x, _ = draw(3, n=40)
    y = torch.arange(40) < 10
    x = x / x.std(dim=0)
    thrice = torch.cat([x, x[:10], x[:10]]), torch.cat([y, y[:10], y[:10]])
    repeated = fit_logistic(*(part[None] for part in thrice), l2=0.01, standardise=False)
    found = fit_logistic(x[None], y[None], l2=0.01, standardise=False, balanced=True)
    torch.testing.assert_close(found, repeated, atol=1e-6, rtol=1e-6)

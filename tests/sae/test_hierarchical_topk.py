"""What arXiv 2505.24473 says of HierarchicalTopK."""

import pytest
import torch

from saelab.config import UsageError
from saelab.sae.context import LossContext
from saelab.sae.hierarchical_topk import HierarchicalTopKConfig
from saelab.sae.topk import TopKConfig
from saelab.testing.steps import loss_of

CONTEXT = LossContext(8.0)


def build(**options):
    config = HierarchicalTopKConfig.model_validate({"d_sae": 24, "k": 6} | options)
    return config.build(8, torch.Generator().manual_seed(0))


@pytest.fixture
def x():
    return torch.randn(32, 8, generator=torch.Generator().manual_seed(1))


def test_with_one_budget_it_is_top_k(x):
    plain = TopKConfig(d_sae=24, k=6).build(8, torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        loss_of(build(budgets=(6,)), x, CONTEXT).total, loss_of(plain, x, CONTEXT).total
    )


def test_the_loss_is_the_mean_error_over_all_budgets_computed_densely(x):
    sae = build()
    z = [sae.encode(x, budget=j).dense() for j in range(1, 7)]
    errors = [(x - each @ sae.W_dec - sae.b_dec).pow(2).sum(-1).mean() for each in z]
    torch.testing.assert_close(loss_of(sae, x, CONTEXT).total, torch.stack(errors).mean() / 8)


def test_the_gradients_are_those_of_the_dense_formula(x):
    sae, twin = build(), build()
    loss_of(sae, x, CONTEXT).total.backward()
    z = [twin.encode(x, budget=j).dense() for j in range(1, 7)]
    errors = [(x - each @ twin.W_dec - twin.b_dec).pow(2).sum(-1).mean() for each in z]
    (torch.stack(errors).mean() / 8).backward()
    for name, value in twin.named_parameters():
        torch.testing.assert_close(getattr(sae, name).grad, value.grad)


def test_a_smaller_budget_keeps_the_largest_of_the_larger(x):
    sae = build()
    assert torch.equal(sae.encode(x, budget=2).indices, sae.encode(x).indices[:, :2])


@pytest.mark.parametrize("budget", [0, 7])
def test_a_budget_that_was_not_trained_is_refused(x, budget):
    with pytest.raises(UsageError, match=f"budget={budget} is outside 1 to k=6"):
        build().encode(x, budget=budget)


@pytest.mark.parametrize("budgets", [(3, 2, 6), (1, 2), (0, 6), (2, 7)])
def test_budgets_that_do_not_rise_to_k_are_refused(budgets):
    with pytest.raises(UsageError, match="must be positive, rise, and end with k=6"):
        build(budgets=budgets)

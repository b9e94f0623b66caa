"""dL/dx is the slope of the summed next-token loss."""

import pytest
import torch

from saelab.config import UsageError
from saelab.lm.gradients import next_token_loss
from saelab.lm.load import load_language_model

HOOKS = ["blocks.0.hook_resid_pre", "blocks.0.attn.hook_z", "blocks.0.hook_resid_post"]


@pytest.fixture(scope="module")
def exact_lm(checkpoint):
    """The random checkpoint in float64, so that finite differences are exact."""
    return load_language_model(str(checkpoint), device="cpu", dtype=torch.float64)


@pytest.fixture
def tokens():
    return torch.randint(1, 13, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def real():
    real = torch.ones(2, 7, dtype=torch.bool)
    real[1, 4:] = False
    return real


def loss(lm, tokens, real, edits=None):
    """The loss by hand: minus the log-probability of every real token behind the first."""
    log_probabilities = lm.logits(tokens, edits).log_softmax(-1)
    return -sum(
        float(log_probabilities[context, position - 1, tokens[context, position]])
        for context, position in real.nonzero().tolist()
        if position > 0
    )


def test_the_loss_is_the_sum_over_real_tokens_but_the_first(exact_lm, tokens, real):
    found = next_token_loss(exact_lm.run(tokens), tokens, real)
    assert float(found) == pytest.approx(loss(exact_lm, tokens, real), rel=1e-12)


@pytest.mark.parametrize("hook", HOOKS)
def test_gradients_are_finite_differences_of_the_loss(exact_lm, tokens, real, hook):
    gradient = exact_lm.gradients(tokens, HOOKS, real)[1][hook]
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
    up, down = (
        loss(exact_lm, tokens, real, {hook: lambda x, step=step: x + step * direction})
        for step in (1e-5, -1e-5)
    )
    assert (up - down) / 2e-5 == pytest.approx(float((gradient * direction).sum()), rel=1e-6)


def test_activations_beside_gradients_are_the_captured_ones(random_lm, tokens, real):
    activations = random_lm.gradients(tokens, HOOKS, real)[0]
    for hook, expected in random_lm.capture(tokens, HOOKS).items():
        torch.testing.assert_close(activations[hook], expected)


def test_padding_and_the_last_real_position_have_no_gradient_at_the_last_site(
    random_lm, tokens, real
):
    last = "blocks.1.hook_resid_post"
    norms = random_lm.gradients(tokens, [last], real)[1][last].norm(dim=-1)
    predicts_a_real_token = torch.zeros_like(real)
    predicts_a_real_token[:, :-1] = real[:, 1:]
    assert torch.equal(norms > 0, predicts_a_real_token)


def test_what_stands_in_the_padding_changes_nothing(random_lm, tokens, real):
    other = torch.where(real, tokens, (tokens + 1) % 13)
    for hook, gradient in random_lm.gradients(tokens, HOOKS, real)[1].items():
        again = random_lm.gradients(other, HOOKS, real)[1][hook]
        torch.testing.assert_close(again[real], gradient[real])
        assert not gradient[~real].any()


def test_a_contexts_gradient_does_not_depend_on_the_batch(random_lm, tokens, real):
    together = random_lm.gradients(tokens, HOOKS, real)[1]
    alone = random_lm.gradients(tokens[:1], HOOKS, real[:1])[1]
    for hook in HOOKS:
        torch.testing.assert_close(together[hook][:1], alone[hook])


def test_gradients_leave_nothing_behind(random_lm, tokens, real):
    before = random_lm.logits(tokens)
    random_lm.gradients(tokens, HOOKS, real)
    assert torch.equal(random_lm.logits(tokens), before)
    assert not any(p.requires_grad or p.grad is not None for p in random_lm._bridge.parameters())


def test_a_site_that_the_skip_connection_goes_past_is_refused(random_lm, tokens, real):
    with pytest.raises(UsageError, match="skip connection"):
        random_lm.gradients(tokens, ["blocks.0.hook_resid_mid"], real)

"""What arXiv 2506.03093 says of MP-SAE (the pursuit itself is tested in tests/pursuit)."""

import pytest
import torch

from saelab.sae.context import LossContext
from saelab.sae.matching_pursuit import MatchingPursuitConfig
from saelab.testing.steps import loss_of


def build(**options):
    config = MatchingPursuitConfig.model_validate({"d_sae": 24, "k": 4} | options)
    sae = config.build(8, torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.b_dec.add_(0.3)
    return sae


@pytest.fixture
def x():
    return torch.randn(32, 8, generator=torch.Generator().manual_seed(1))


def test_the_error_is_that_of_the_decoded_codes(x):
    sae = build()
    error = (x - sae.reconstruct(x)).pow(2).sum(-1).mean()
    torch.testing.assert_close(loss_of(sae, x, LossContext(1.0)).total, error)


def test_gradients_are_those_of_the_plain_loop(x):
    sae, twin = build(), build()
    loss_of(sae, x, LossContext(1.0)).total.backward()
    r = x - twin.b_dec
    for _ in range(4):
        with torch.no_grad():
            j = (r @ twin.W_dec.T).argmax(1)
        w = twin.W_dec[j]
        r = r - (r * w).sum(1, keepdim=True).relu() * w
    r.pow(2).sum(-1).mean().backward()
    torch.testing.assert_close(sae.W_dec.grad, twin.W_dec.grad)
    torch.testing.assert_close(sae.b_dec.grad, twin.b_dec.grad)


def test_more_steps_at_inference_never_lengthen_the_residual(x):
    sae = build()
    lengths = [sae.pursue(x, n).residual.norm(dim=1) for n in (1, 2, 4, 8, 16)]
    for shorter, longer in zip(lengths[1:], lengths, strict=False):
        assert (shorter <= longer + 1e-6).all()


def test_a_residual_threshold_ends_rows_where_they_are_good_enough(x):
    sae = build(k=24, residual_threshold=1.0)
    pursuit = sae.pursue(x)
    taken = (pursuit.values > 0).sum(1)
    assert len(taken.unique()) > 1
    assert (pursuit.residual.norm(dim=1)[taken < 24] <= 1.0).all()
    before_last = sae.pursue(x, int(taken.max()) - 1).residual.norm(dim=1)
    assert (before_last[taken == taken.max()] > 1.0).all()


def test_training_takes_every_step_whatever_the_threshold(x):
    strict = loss_of(build(residual_threshold=1e9), x, LossContext(1.0)).total
    assert torch.equal(strict, loss_of(build(), x, LossContext(1.0)).total)

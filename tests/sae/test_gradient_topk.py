"""What arXiv 2411.10397 says of gradient SAEs, in both readings."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saelab.config import UsageError
from saelab.pursuit.select import top_k
from saelab.sae.context import LossContext
from saelab.sae.gradient_topk import GradientTopKConfig, effects
from saelab.sae.losses import local_loss
from saelab.testing.steps import loss_of
from saelab.types import ActivationBatch


def build(**options):
    config = GradientTopKConfig.model_validate({"d_sae": 24, "k": 3} | options)
    return config.build(8, torch.Generator().manual_seed(0))


def rows(seed=1, n=32):
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("reading", ["augmented", "product"])
def test_without_a_gradient_the_choice_is_that_of_top_k(reading):
    sae = build(reading=reading)
    pre_acts = sae.pre_activations(rows())
    chosen = sae.select(pre_acts, torch.zeros(32, 8))
    assert torch.equal(chosen.dense(), top_k(pre_acts, 3).dense())


def test_augmented_with_beta_zero_is_top_k():
    sae = build(beta=0.0)
    pre_acts = sae.pre_activations(rows())
    assert torch.equal(sae.select(pre_acts, rows(2)).dense(), top_k(pre_acts, 3).dense())


@given(scale=st.floats(1e-6, 1e6))
def test_the_choice_does_not_depend_on_how_large_a_gradient_is(scale):
    for reading in ("augmented", "product"):
        sae = build(reading=reading)
        pre_acts, grad = sae.pre_activations(rows()), rows(2)
        assert torch.equal(
            sae.select(pre_acts, scale * grad).dense(), sae.select(pre_acts, grad).dense()
        )


def test_raw_gradients_choose_by_the_papers_formula_and_weigh_tokens_by_their_loss():
    """The k largest of z + beta * z o |W_dec grad|, token by token in float64; beta and the
    gradient's size are then one factor, and with a tiny gradient TopK chooses.
    """
    sae, x, grad, beta = build(beta=3.0, normalise_gradient=False), rows(), rows(2), 3.0
    pre_acts = sae.pre_activations(x)
    chosen = sae.select(pre_acts, grad)
    for i, (a, g) in enumerate(zip(pre_acts.double(), grad.double(), strict=True)):
        z = a.relu()
        score = z + beta * z * torch.stack([(w.double() @ g).abs() for w in sae.W_dec])
        best = score.argsort(descending=True)[:3]
        assert set(chosen.indices[i].tolist()) == set(best.tolist())
    other = build(beta=1.5, normalise_gradient=False)
    assert torch.equal(other.select(pre_acts, 2 * grad).dense(), chosen.dense())
    weak = sae.select(pre_acts, 1e-9 * grad).dense()
    assert torch.equal(weak, top_k(pre_acts, 3).dense())
    assert not torch.equal(weak, chosen.dense())
    assert torch.equal(
        build(beta=3.0).select(pre_acts, 1e-9 * grad).dense(),
        build(beta=3.0).select(pre_acts, grad).dense(),
    )


@pytest.mark.parametrize("reading", ["augmented", "product"])
def test_values_are_those_of_the_encoder_whatever_chose_them(reading):
    sae = build(reading=reading)
    z = sae.pre_activations(rows()).relu()
    codes = sae.select(sae.pre_activations(rows()), rows(2))
    assert torch.equal(codes.values, z.gather(1, codes.indices))
    assert not torch.equal(codes.dense(), top_k(z, 3).dense())


def test_the_product_chooses_by_value_times_effect():
    sae = build(reading="product")
    z, grad = sae.pre_activations(rows()).relu(), rows(2)
    score = z * (grad @ sae.W_dec.T).abs()
    kept = score >= score.sort(dim=1, descending=True).values[:, 2:3]
    expected = torch.where(kept & (score > 0), z, 0.0)
    codes = sae.select(sae.pre_activations(rows()), grad)
    positive = (score > 0).sum(1) >= 3
    assert torch.equal(codes.dense()[positive], expected[positive])


def test_effects_of_random_atoms_have_root_mean_square_one():
    atoms = torch.nn.functional.normalize(rows(3, n=20_000), dim=1)
    found = effects(100 * rows(4, n=5), atoms, relative=True)
    torch.testing.assert_close(found.pow(2).mean(1).sqrt(), torch.ones(5), atol=0.03, rtol=0)


def test_an_effect_is_the_losss_derivative_by_the_latents_value():
    """Finite differences of a loss on the reconstruction, in float64."""
    sae = build().double()
    x, step = rows().double(), 1e-6
    loss_at = lambda x: (x.sin() * torch.arange(1, 9)).sum()  # noqa: E731
    z = sae.pre_activations(x).relu().double().detach()
    x_hat = (z @ sae.W_dec + sae.b_dec).detach().requires_grad_()
    (grad,) = torch.autograd.grad(loss_at(x_hat), x_hat)
    z[3, 7] += step
    moved = loss_at(z @ sae.W_dec + sae.b_dec) - loss_at(x_hat)
    expected = grad[3] @ sae.W_dec[7]
    torch.testing.assert_close((moved / step).detach(), expected.detach(), atol=1e-4, rtol=1e-4)
    size = grad[3].norm() / 8**0.5
    for relative, unit in ((True, size), (False, 1.0)):
        effect = effects(grad, sae.W_dec, relative=relative)[3, 7].double() * unit
        torch.testing.assert_close(effect.detach(), expected.abs().detach(), rtol=1e-5, atol=1e-6)


def test_the_score_carries_no_gradient():
    grad = rows(2).requires_grad_()
    loss_of(build(), rows(), LossContext(8.0), grad).total.backward()
    assert grad.grad is None


def test_inference_is_plain_top_k():
    sae = build()
    assert torch.equal(sae.encode(rows()).dense(), top_k(sae.pre_activations(rows()), 3).dense())


def test_training_without_gradients_is_refused_with_the_remedy():
    with pytest.raises(UsageError, match="harvest with --gradients"):
        local_loss(build(), ActivationBatch(rows()), LossContext(8.0))

"""What arXiv 2406.04093 says of TopK."""

import pytest
import torch

from saelab.sae.context import LossContext
from saelab.sae.dictionary import default_aux_k
from saelab.sae.losses import aux_k_loss, squared_error
from saelab.sae.topk import TopK, TopKConfig
from saelab.testing.steps import loss_of
from saelab.types import SparseCodes


def build(**options) -> TopK:
    return TopKConfig(d_sae=24, **options).build(8, torch.Generator().manual_seed(0))


@pytest.fixture
def x():
    return torch.randn(32, 8, generator=torch.Generator().manual_seed(1))


def test_with_k_equal_to_the_width_it_is_a_relu_autoencoder(x):
    sae = build(k=24)
    z = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()
    torch.testing.assert_close(sae.reconstruct(x), z @ sae.W_dec + sae.b_dec)


def test_codes_are_never_negative(x):
    assert (build(k=24).encode(x).values >= 0).all()


def test_multi_top_k_with_weight_zero_is_top_k(x):
    context = LossContext(8.0)
    plain = loss_of(build(k=4), x, context)
    assert "multi_k" not in plain.parts
    multi = loss_of(build(k=4, multi_k_coefficient=1 / 8), x, context)
    wide = squared_error(x, build(k=16).reconstruct(x)) / 8
    torch.testing.assert_close(multi.total, plain.total + wide / 8)


def test_multi_top_k_reports_the_codes_of_k_not_of_4k(x):
    codes = loss_of(build(k=4, multi_k_coefficient=1 / 8), x, LossContext(8.0)).codes
    assert codes.values.shape[1] == 4


def test_aux_k_defaults_to_the_power_of_two_nearest_half_the_width():
    assert default_aux_k(768, 4096) == 512
    assert default_aux_k(128, 4096) == 64
    assert default_aux_k(128, 32) == 32


def test_aux_k_is_absent_while_nothing_is_dead_or_when_switched_off(x):
    dead = torch.ones(24, dtype=torch.bool)
    assert "aux_k" not in loss_of(build(k=4), x, LossContext(8.0)).parts
    off = loss_of(build(k=4, aux_coefficient=0.0), x, LossContext(8.0, dead))
    assert "aux_k" not in off.parts


def test_aux_k_equals_its_formula_computed_densely(x):
    x, sae = x[:5], build(k=2, aux_k=3)
    dead = torch.arange(24) >= 4
    terms = loss_of(sae, x, LossContext(8.0, dead))
    dead &= sae.encode(x).firing_counts() == 0
    residual = x - sae.reconstruct(x)
    a = sae.pre_activations(x)[:, dead]
    kept = a.topk(3, dim=1)
    z = torch.zeros_like(a).scatter(1, kept.indices, kept.values.relu())
    error = (z @ sae.W_dec[dead] - residual).pow(2).sum()
    expected = error / (residual - residual.mean(0)).pow(2).sum()
    torch.testing.assert_close(terms.parts["aux_k"], expected.detach())
    torch.testing.assert_close(
        terms.total, squared_error(x, sae.reconstruct(x)) / 8 + expected / 32
    )


def test_aux_k_leaves_the_bias_and_the_residual_alone(x):
    sae = build(k=2)
    x_hat = sae.reconstruct(x).detach().requires_grad_()
    codes = SparseCodes(torch.ones(32, 1), torch.zeros(32, 1, dtype=torch.int64), 24)
    aux_k_loss(x - x_hat, sae.written(codes)).backward()
    assert x_hat.grad is None
    assert sae.b_dec.grad is None


def test_aux_k_of_a_perfect_reconstruction_is_zero_not_nan(x):
    codes = SparseCodes(torch.zeros(32, 1), torch.zeros(32, 1, dtype=torch.int64), 24)
    assert float(aux_k_loss(x - x, build(k=2).written(codes).detach())) == 0.0

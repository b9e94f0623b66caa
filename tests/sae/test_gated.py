"""What arXiv 2404.16014 says of gated SAEs."""

import pytest
import torch

from saelab.sae.context import LossContext
from saelab.sae.gated import GatedConfig
from saelab.sae.jumprelu import JumpReLUConfig
from saelab.testing.steps import loss_of
from saelab.types import ActivationBatch

V, D_IN, D_SAE = 9.0, 8, 24
LAST = LossContext(V, step=99, n_steps=100)


def build(**options):
    """Biases, rises and the scale of the encoder differ from what they are at the start."""
    config = GatedConfig.model_validate({"d_sae": D_SAE, **options})
    sae = config.build(D_IN, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in (sae.b_gate, sae.r_mag, sae.b_mag, sae.b_dec):
            value.normal_(std=0.5, generator=generator)
    return sae


@pytest.fixture
def x():
    return torch.randn(64, D_IN, generator=torch.Generator().manual_seed(1))


def gradients(sae, loss):
    names = [name for name, _ in sae.named_parameters()]
    grads = torch.autograd.grad(loss, list(sae.parameters()), allow_unused=True)
    return dict(zip(names, grads, strict=True))


def test_the_loss_is_that_of_the_plain_formula(x):
    sae, x = build(l1_coefficient=0.7).double(), x.double()
    u = (x - sae.b_dec) @ sae.W_enc
    gate, norms = u + sae.b_gate, sae.W_dec.norm(dim=1)
    z = (gate > 0) * (u * sae.r_mag.exp() + sae.b_mag).relu()

    def error(codes):
        return (x - codes @ sae.W_dec - sae.b_dec).square().sum(1).mean() / V

    l1 = (gate.relu() * norms).sum(1).mean() / V**0.5
    expected = error(z) + 0.7 * l1 + error(gate.relu())
    torch.testing.assert_close(loss_of(sae, x, LAST).total, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(sae.encode(x).dense(), z, rtol=1e-5, atol=1e-6)


def test_without_a_rise_and_with_one_bias_it_is_a_relu_sae(x):
    sae = build()
    with torch.no_grad():
        sae.r_mag.zero_()
        sae.b_mag.copy_(sae.b_gate)
    expected = ((x - sae.b_dec) @ sae.W_enc + sae.b_gate).relu()
    torch.testing.assert_close(sae.encode(x).dense(), expected)


def test_the_gate_learns_from_the_penalty_and_the_second_reconstruction_alone(x):
    sae = build()
    done = sae.training_pass(ActivationBatch(x), LAST)
    assert gradients(sae, done.error)["b_gate"] is None
    for name in ("l1", "gate"):
        found = gradients(sae, sae.training_pass(ActivationBatch(x), LAST).parts[name][1])
        assert found["b_gate"].any(), name
        assert found["r_mag"] is found["b_mag"] is found["W_dec"] is None, name


def test_the_decoder_learns_from_the_main_reconstruction_alone(x):
    sae = build()
    done = sae.training_pass(ActivationBatch(x), LAST)
    main = gradients(sae, done.error / V)["W_dec"]
    loss_of(sae, x, LAST).total.backward()
    torch.testing.assert_close(sae.W_dec.grad, main)


def test_it_has_the_codes_of_a_jumprelu_sae_with_its_threshold(x):
    sae = build()
    jump = JumpReLUConfig(d_sae=D_SAE, k=None, subtract_b_dec=True).build(D_IN)
    with torch.no_grad():
        encoder = sae.affine_encoder()
        jump.W_enc.copy_(encoder.W_enc)
        jump.b_enc.copy_(encoder.b_enc)
        jump.b_dec.copy_(sae.b_dec)
        jump.threshold.copy_(sae.threshold)
    assert (sae.threshold > 0).any()
    assert (sae.threshold == 0).any()
    torch.testing.assert_close(sae.encode(x).dense(), jump.encode(x).dense())

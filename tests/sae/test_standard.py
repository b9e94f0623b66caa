"""What arXiv 2309.08600 and the update of April 2024 say of SAEs with ReLU and L1."""

import pytest
import torch

from saelab.sae.context import LossContext
from saelab.sae.standard import StandardConfig
from saelab.testing.steps import loss_of, train_step

V = 9.0
LAST = LossContext(V, step=99, n_steps=100)


def build(d_sae=24, d_in=8, **options):
    config = StandardConfig.model_validate({"d_sae": d_sae, **options})
    return config.build(d_in, torch.Generator().manual_seed(0))


def rows(n=32, seed=1):
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("subtract_b_dec", [False, True])
def test_loss_and_gradients_are_those_of_the_plain_formula(subtract_b_dec):
    sae, x = build(subtract_b_dec=subtract_b_dec, l1_coefficient=0.7).double(), rows().double()
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    with torch.no_grad():
        sae.b_dec.normal_(generator=torch.Generator().manual_seed(2))
    W_enc, b_enc, W_dec, b_dec = plain = [
        sae.get_parameter(n).detach().clone().requires_grad_() for n in names
    ]
    z = ((x - b_dec if subtract_b_dec else x) @ W_enc + b_enc).relu()
    l1 = (z * W_dec.norm(dim=1)).sum(1).mean()
    expected = (x - z @ W_dec - b_dec).square().sum(1).mean() / V + 0.7 * l1 / V**0.5
    expected.backward()
    terms = loss_of(sae, x, LAST)
    terms.total.backward()
    torch.testing.assert_close(terms.total, expected, rtol=1e-6, atol=0)
    for name, theirs in zip(names, plain, strict=True):
        torch.testing.assert_close(
            sae.get_parameter(name).grad, theirs.grad, rtol=1e-5, atol=1e-6, msg=name
        )


def test_no_scale_of_a_latent_evades_the_penalty():
    """An encoder column c times as long with an atom c times as short leaves loss and x_hat."""
    sae, x = build(), rows()
    before = loss_of(sae, x, LAST).total
    factor = torch.linspace(0.1, 5, sae.d_sae)
    with torch.no_grad():
        sae.W_enc.mul_(factor)
        sae.b_enc.mul_(factor)
        sae.W_dec.div_(factor[:, None])
    torch.testing.assert_close(loss_of(sae, x, LAST).total, before)


def test_the_penalty_shrinks_a_code_by_half_its_weight():
    """One atom w and x = s w: (s - z)^2 / V + c z / sqrt(V) is least at z = s - c sqrt(V) / 2."""
    c, s = 0.4, 5.0
    sae = build(d_sae=1, l1_coefficient=c)
    with torch.no_grad():
        sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_dec, dim=1))
        sae.W_enc.zero_()
        sae.b_enc.fill_(s - c * V**0.5 / 2)
        x = s * sae.W_dec
    loss_of(sae, x.detach(), LAST).total.backward()
    torch.testing.assert_close(sae.b_enc.grad, torch.zeros(1), atol=1e-6, rtol=0)


def test_the_penalty_rises_over_its_share_of_the_run():
    sae, x = build(l1_coefficient=1.0, l1_warmup=0.5), rows()
    totals = []
    for step in (0, 25, 50, 99):
        terms = loss_of(sae, x, LossContext(V, step=step, n_steps=100))
        totals.append(float((terms.total.detach() - terms.mse_sum / V) / terms.parts["l1"]))
    assert totals == pytest.approx([0, 0.5, 1, 1], abs=1e-5)


def test_a_larger_weight_leaves_fewer_latents_and_a_larger_error():
    l0, error = [], []
    for weight in (0.0, 0.3, 1.0):
        sae, context = build(l1_coefficient=weight), LossContext(8.0, step=99, n_steps=100)
        optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3)
        for seed in range(150):
            train_step(sae, optimizer, rows(64, seed), context)
        terms = loss_of(sae, rows(256, 999), context)
        l0.append(terms.codes.mean_l0())
        error.append(float(terms.mse_sum))
    assert l0[0] > l0[1] > l0[2]
    assert error[0] < error[1] < error[2]


def test_the_first_reconstruction_has_the_size_of_its_rows():
    """Half of 4096 latents fire; with unit atoms it would be 256 times as long."""
    sae, x = build(d_sae=4096), rows(256)
    ratio = sae.reconstruct(x).norm(dim=1).mean() / x.norm(dim=1).mean()
    assert float(ratio.detach()) == pytest.approx(1, abs=0.1)

"""What arXiv 2510.00404 says of AbsTopK."""

from itertools import combinations

import pytest
import torch

from saelab.sae.abs_topk import AbsTopKConfig, BatchAbsTopK
from saelab.sae.context import LossContext
from saelab.testing.steps import train_step


def test_with_zero_biases_the_encoder_is_odd():
    sae = AbsTopKConfig(d_sae=24, k=3).build(8, torch.Generator().manual_seed(0))
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sae.encode(-x).dense(), -sae.encode(x).dense())


@pytest.mark.unchecked
def test_one_latent_represents_both_poles_of_a_concept():
    """A single direction with either sign: one latent suffices, and reconstructs both."""
    generator = torch.Generator().manual_seed(0)
    sae = AbsTopKConfig(d_sae=2, k=1).build(4, generator)
    pole = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    for _ in range(400):
        x = torch.randn(64, 1, generator=generator) * pole
        train_step(sae, optimizer, x, LossContext(1.0))
    sae.requires_grad_(requires_grad=False)
    plus, minus = sae.encode(2 * pole), sae.encode(-2 * pole)
    assert torch.equal(plus.indices, minus.indices)
    assert float(plus.values * minus.values) < 0
    torch.testing.assert_close(sae.decode(plus), 2 * pole, atol=0.1, rtol=0)
    torch.testing.assert_close(sae.decode(minus), -2 * pole, atol=0.1, rtol=0)


@torch.no_grad()
def test_the_batch_form_keeps_k_per_row_on_average_and_signs():
    sae = AbsTopKConfig(d_sae=24, k=3, selection="batch").build(8, torch.Generator().manual_seed(0))
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    assert isinstance(sae, BatchAbsTopK)
    sae.calibrate(x)
    codes = sae.encode(x)
    assert int(codes.active.sum()) == 3 * 16
    assert (codes.values < 0).any()
    assert float(codes.values.abs()[codes.active].min()) > float(sae.threshold)


@torch.no_grad()
def test_turning_latents_around_changes_codes_by_their_sign_and_nothing_else():
    # P7.15: W_enc[:, i], b_enc[i] and W_dec[i] with the other sign.
    sae = AbsTopKConfig(d_sae=24, k=3).build(8, torch.Generator().manual_seed(0))
    sae.b_enc.copy_(0.3 * torch.randn(24, generator=torch.Generator().manual_seed(2)))
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    codes, x_hat = sae.encode(x).dense(), sae.reconstruct(x)
    sign = torch.where(torch.arange(24) % 2 == 0, -1.0, 1.0)
    for value in (sae.W_enc, sae.b_enc, sae.W_dec):
        value.mul_(sign[:, None] if value is sae.W_dec else sign)
    assert (codes * sign != codes).any()
    assert torch.equal(sae.encode(x).dense(), codes * sign)
    torch.testing.assert_close(sae.reconstruct(x), x_hat)


@torch.no_grad()
def test_no_other_code_of_k_entries_is_closer_to_the_pre_activations():
    # P7.14, against every other choice of entries.
    sae = AbsTopKConfig(d_sae=7, k=3).build(8, torch.Generator().manual_seed(0))
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    a = sae.pre_activations(x)
    mine = (a - sae.encode(x).dense()).pow(2).sum(1)
    for chosen in combinations(range(7), 3):
        z = torch.zeros_like(a)
        z[:, list(chosen)] = a[:, list(chosen)]
        assert bool((mine <= (a - z).pow(2).sum(1) + 1e-6).all())

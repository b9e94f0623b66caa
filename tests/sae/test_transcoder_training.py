"""Where transcoders start, and that training finds what was planted."""

import pytest
import torch
from sae.test_transcoder import D_IN, D_OUT, D_SAE, pairs
from torch.nn.functional import normalize

from saelab.sae.base import AbstractSAE
from saelab.sae.context import LossContext
from saelab.sae.losses import local_loss
from saelab.sae.transcoder import make_transcoder, start_transcoder
from saelab.sae.variants import SAE_CONFIG
from saelab.types import ActivationBatch


def test_the_encoder_starts_as_the_atoms_where_the_target_is_the_input():
    x, _ = pairs(4096)
    sae = SAE_CONFIG.validate_python({"variant": "topk", "d_sae": D_SAE, "k": 4}).build(D_IN)
    make_transcoder(sae, D_IN)
    start_transcoder(sae, x, x)
    cosine = (sae.get_parameter("W_enc") * sae.W_dec.T).sum(dim=0)
    torch.testing.assert_close(cosine, torch.ones(D_SAE), atol=1e-3, rtol=0)


def test_the_encoder_starts_as_what_predicts_each_atoms_part_of_the_target():
    x, _ = pairs(4096)
    W = torch.randn(D_IN, D_OUT, generator=torch.Generator().manual_seed(5))
    sae = SAE_CONFIG.validate_python({"variant": "topk", "d_sae": D_SAE, "k": 4}).build(D_IN)
    make_transcoder(sae, D_OUT)
    start_transcoder(sae, x, x @ W + 3)
    expected = normalize(W @ sae.W_dec.T, dim=0)
    torch.testing.assert_close(sae.get_parameter("W_enc").detach(), expected, atol=2e-2, rtol=0)


@pytest.mark.slow
@pytest.mark.unchecked
def test_a_linear_target_needs_no_latent_with_a_skip_connection():
    x, _ = pairs(512)
    y = x @ torch.randn(D_IN, D_OUT, generator=torch.Generator().manual_seed(5))
    errors = {}
    for skip in (True, False):
        sae = trained(x, y, d_sae=8, k=1, skip=skip, steps=200, lr=3e-2)
        errors[skip] = fvu(sae, x, y)
    assert errors[True] < 0.01 < 0.3 < errors[False]


@pytest.mark.slow
@pytest.mark.unchecked
def test_a_planted_sparse_mlp_is_recovered():
    """y = ReLU(x A - t) W with 16 hidden units, of which few are on: each is found, both ends."""
    generator = torch.Generator().manual_seed(2)
    A = normalize(torch.randn(D_IN, 16, generator=generator), dim=0)
    W = normalize(torch.randn(16, D_OUT, generator=generator), dim=1)
    x = torch.randn(4096, D_IN, generator=generator)
    y = (x @ A - 1.3).relu() @ W
    sae = trained(x, y, d_sae=48, k=6, steps=900, lr=2e-2)
    assert fvu(sae, x, y) < 0.05
    at_the_end = W @ sae.W_dec.detach().T
    nearest = at_the_end.argmax(dim=1)
    read = normalize(sae.get_parameter("W_enc").detach(), dim=0)
    assert float(at_the_end.max(dim=1).values.median()) > 0.95
    assert float((A * read[:, nearest]).sum(dim=0).median()) > 0.9


def trained(x, y, *, d_sae, k, skip=False, steps, lr) -> AbstractSAE:
    generator = torch.Generator().manual_seed(0)
    config = SAE_CONFIG.validate_python({"variant": "topk", "d_sae": d_sae, "k": k})
    sae = make_transcoder(
        config.build(x.shape[1], generator), y.shape[1], skip=skip, generator=generator
    )
    start_transcoder(sae, x, y)
    sae.initialise(x)
    optimizer = torch.optim.Adam(sae.parameters(), lr=lr)
    variance = float((y - y.mean(0)).pow(2).sum(1).mean())
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (256,), generator=generator)
        terms = local_loss(sae, ActivationBatch(x[rows], target=y[rows]), LossContext(variance))
        optimizer.zero_grad()
        terms.total.backward()
        sae.before_optimizer_step()
        optimizer.step()
        sae.after_optimizer_step()
        schedule.step()
    return sae


def fvu(sae: AbstractSAE, x, y) -> float:
    with torch.no_grad():
        return float((y - sae.reconstruct(x)).pow(2).sum() / (y - y.mean(0)).pow(2).sum())

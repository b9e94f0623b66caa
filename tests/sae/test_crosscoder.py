"""Crosscoders on planted features, some shared by two sites and some specific to one."""

import pytest
import torch
from torch.nn import functional as F

from saelab.config import UsageError
from saelab.sae.context import LossContext
from saelab.sae.crosscoder import Crosscoder, CrosscoderConfig
from saelab.testing.planted import SMALLEST, orthonormal_atoms, switches
from saelab.testing.steps import train_step

D, N_EACH, WEAK = 16, 4, 0.3
N = 3 * N_EACH
STEPS = 250


def atoms() -> torch.Tensor:
    """`[feature, site, d]`: strong at both sites, at the first alone, weak at the second."""
    sites = torch.stack([orthonormal_atoms(N, D, seed=seed) for seed in (1, 2)], dim=1)
    second = torch.tensor([1.0] * N_EACH + [0.0] * N_EACH + [WEAK] * N_EACH)
    return sites * torch.stack([torch.ones(N), second], dim=1)[..., None]


def rows(n: int, seed: int) -> torch.Tensor:
    values = switches(n, N, rate=0.15, seed=seed)
    values *= SMALLEST + torch.rand(values.shape, generator=torch.Generator().manual_seed(seed + 1))
    noise = torch.randn(n, 2 * D, generator=torch.Generator().manual_seed(seed + 2))
    return values @ atoms().flatten(1) + 0.02 * noise


def trained(**options) -> Crosscoder:
    config = CrosscoderConfig(d_sae=20, k=0.15 * N, widths=(D, D), **options)
    sae = config.build(2 * D, torch.Generator().manual_seed(0))
    x = rows(64 * 256, 7)
    sae.initialise(x[:2048])
    optimizer = torch.optim.Adam(sae.parameters())
    variance = float(x.var(0, correction=0).sum())
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 2e-2 * min(1.0, 3 * (STEPS - step) / STEPS)
        batch = x[256 * (step % 64) :][:256]
        train_step(sae, optimizer, batch, LossContext(variance, None, step, STEPS))
    sae.calibrate(rows(4096, 8))
    return sae


def relative_norms(sae: Crosscoder) -> torch.Tensor:
    """The second site's norm over the first's, of the latent of each feature."""
    cosine = F.normalize(atoms().flatten(1), dim=1) @ F.normalize(sae.W_dec.detach(), dim=1).T
    assert float(cosine.max(dim=1).values.min()) > 0.95
    norms = sae.site_norms().detach()[cosine.argmax(dim=1)]
    return norms[:, 1] / norms[:, 0]


@pytest.mark.unchecked
def test_selection_finds_how_far_features_are_shared_and_a_penalty_shrinks_the_smaller_part():
    """arXiv 2504.02922: under L1, weakly shared features look specific (complete shrinkage)."""
    chosen, penalised = (
        relative_norms(trained(selection=selection, l1_coefficient=0.25)).split(N_EACH)
        for selection in ("batch-topk", "l1")
    )
    for found, strong in ((chosen, 0.05), (penalised, 0.2)):
        torch.testing.assert_close(found[0], torch.ones(N_EACH), atol=strong, rtol=0)
        torch.testing.assert_close(found[1], torch.zeros(N_EACH), atol=0.1, rtol=0)
    torch.testing.assert_close(chosen[2], torch.full((N_EACH,), WEAK), atol=0.05, rtol=0)
    assert float(penalised[2].max()) < 0.2 < float(chosen[2].min())


def test_norms_sum_to_one_after_a_step_without_a_change_of_the_function():
    sae = CrosscoderConfig(d_sae=20, k=2, widths=(D, D)).build(2 * D)
    x = rows(64, 3)
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(20, 1) + 0.5)
        before = sae.pre_activations(x) @ sae.W_dec
        sae.after_optimizer_step()
        after = sae.pre_activations(x) @ sae.W_dec
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(sae.site_norms().sum(1).detach(), torch.ones(20))


def test_a_latent_starts_alike_at_sites_of_one_width():
    sae = CrosscoderConfig(d_sae=20, k=2, widths=(4, 6, 4)).build(14)
    first, _, last = sae.W_dec.detach().split((4, 6, 4), dim=1)
    assert torch.equal(first, last)
    torch.testing.assert_close(sae.site_norms().detach(), torch.full((20, 3), 1 / 3))


def test_other_widths_are_refused():
    with pytest.raises(UsageError, match=r"widths=\(4, 4\) do not sum to the rows' 9 numbers"):
        CrosscoderConfig(d_sae=20, k=2, widths=(4, 4)).build(9)
    with pytest.raises(UsageError, match="are not those of the sites"):
        CrosscoderConfig(d_sae=20, k=2, widths=(4, 4)).at_widths((4, 5))

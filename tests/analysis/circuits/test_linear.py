"""Active latents as affine maps: the SAE's own codes, and their exact derivatives."""

import pytest
import torch
from analysis.steering.cases import random_sae

from saelab.config import UsageError
from saelab.sae.k_sparse import KSparseConfig
from saelab.sae.linear import linearize
from saelab.sae.matching_pursuit import MatchingPursuitConfig
from saelab.sae.variants import BUILT_IN, sized
from saelab.types import SparseCodes


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 16, generator=generator, dtype=torch.float64)


def built(variant):
    sae = sized(variant, 32, 6).build(16, torch.Generator().manual_seed(1)).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        sae.b_dec.copy_(torch.randn(16, generator=generator))
        if "b_enc" in dict(sae.named_parameters()):
            sae.get_parameter("b_enc").copy_(0.1 * torch.randn(32, generator=generator))
    sae.calibrate(torch.randn(200, 16, generator=generator, dtype=torch.float64))
    return sae.requires_grad_(requires_grad=False)


AFFINE = [name for name in BUILT_IN if name not in ("bsc", "tsc", "bilinear", "clt")]
"""Codes of the others have one size only, are quadratic, or are of several sites."""


def affine_codes(sae, x) -> torch.Tensor:
    found = linearize(sae, x)
    values = (found.encoder[:] * x[found.row]).sum(-1) + found.constant
    dense = torch.zeros(len(x), sae.d_sae, dtype=x.dtype)
    dense[found.row, found.latent] = values
    return dense


@pytest.mark.parametrize("variant", AFFINE)
def test_the_affine_form_gives_every_variants_codes(variant, x):
    sae = built(variant)
    # Pre-activations of most variants are rounded to float32.
    torch.testing.assert_close(
        affine_codes(sae, x), sae.encode(x).dense().double(), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("variant", AFFINE)
def test_the_encoder_row_is_the_derivative_of_the_code(variant, x):
    sae = built(variant)
    found = linearize(sae, x)
    rows = x.clone().requires_grad_()
    for entry in (0, len(found) // 2, len(found) - 1):
        row, latent = int(found.row[entry]), int(found.latent[entry])
        (grad,) = torch.autograd.grad(sae.encode(rows).dense()[row, latent], rows)
        torch.testing.assert_close(grad[row].double(), found.encoder[entry], atol=1e-5, rtol=1e-4)


def test_an_atom_that_is_pursued_twice_is_one_latent(x):
    # Correlated atoms in two dimensions are chosen again and again.
    sae = MatchingPursuitConfig(d_sae=8, k=8).build(2, torch.Generator().manual_seed(0)).double()
    rows = x[:, :2].contiguous()
    steps = sae.pursue(rows)
    assert any(
        len(set(i.tolist())) < int((v > 0).sum())
        for v, i in zip(steps.values, steps.indices, strict=True)
    )
    found = linearize(sae, rows)
    pairs = set(zip(found.row.tolist(), found.latent.tolist(), strict=True))
    assert len(pairs) == len(found)
    torch.testing.assert_close(affine_codes(sae, rows), sae.encode(rows).dense().detach())


def test_entries_are_sorted_by_row_and_latent(x):
    found = linearize(random_sae("abs-topk").double(), x)
    keys = (found.row * 24 + found.latent).tolist()
    assert keys == sorted(set(keys))
    assert bool((found.values < 0).any())


def test_a_row_without_active_latents_has_no_entries(x):
    sae = random_sae("jumprelu").double()
    sae.get_parameter("threshold").fill_(1e6)
    assert len(linearize(sae, x)) == 0


def test_a_k_sparse_code_keeps_negative_units(x):
    sae = KSparseConfig(d_sae=8, k=8).build(16, torch.Generator().manual_seed(0)).double()
    found = linearize(sae, x)
    assert len(found) == 7 * 8
    assert bool((found.values < 0).any())


def test_codes_that_are_not_the_affine_ones_are_refused(x, monkeypatch):
    sae = random_sae("topk").double()
    plain = type(sae).encode

    def squared(self, rows):
        codes = plain(self, rows)
        return SparseCodes(codes.values**2, codes.indices, codes.d_sae)

    monkeypatch.setattr(type(sae), "encode", squared)
    with pytest.raises(UsageError, match=r"misses its codes by .* use another variant"):
        linearize(sae, x)


def test_an_unknown_kind_of_sae_is_refused(x):
    # pyrefly: ignore[invalid-inheritance]
    class Other(type(random_sae("topk")).__mro__[2]):  # an SAE of none of the known families
        def encode(self, x):
            return SparseCodes(x[:, :1], torch.zeros(len(x), 1, dtype=torch.long), 4)

        def training_pass(self, batch, context):
            raise NotImplementedError

        def initialise(self, rows):
            raise NotImplementedError

        def rescale(self, scale):
            raise NotImplementedError

    sae = Other()
    sae.config = random_sae("topk").config
    sae.W_dec = torch.nn.Parameter(torch.eye(4, 16, dtype=torch.float64))
    sae.b_dec = torch.nn.Parameter(torch.zeros(16, dtype=torch.float64))
    with pytest.raises(UsageError, match="of a Other are not known to be affine"):
        linearize(sae, x)

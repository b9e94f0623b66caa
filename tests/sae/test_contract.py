"""What every variant promises, for the built-in ones in all their forms."""

from contextlib import nullcontext

import pytest
import torch

from saelab.config import UsageError
from saelab.sae.context import LossContext
from saelab.sae.losses import local_loss
from saelab.sae.variants import BUILT_IN
from saelab.testing.variant_contract import *  # noqa: F403 - the tests themselves
from saelab.testing.variant_contract import loss_of
from saelab.types import ActivationBatch

FEW_STATES = {name: {"candidates": 4, "max_active": 2} for name in ("bsc", "tsc", "gsc")}
FORMS = [
    *({"variant": name, **FEW_STATES.get(name, {})} for name in BUILT_IN),
    {"variant": "abs-topk", "selection": "batch"},
    {"variant": "abs-topk", "selection": "batch", "subtract_b_dec": False},
    {"variant": "gradient-topk", "normalise_gradient": False},
    {"variant": "matryoshka", "random_prefixes": 3},
    {"variant": "feature-choice", "mutual_share": 0.0},
    {"variant": "jumprelu", "subtract_b_dec": True},
    {"variant": "standard", "subtract_b_dec": True},
    {"variant": "bilinear", "k": None},
    {"variant": "bilinear", "bottleneck": 20, "ordered": True, "k": None},
]
PLAIN = ("topk", "batch-topk", "abs-topk", "gradient-topk")


def test_gradients_are_those_of_the_plain_formula(sae, x):
    if sae.config.variant not in PLAIN:
        pytest.skip("has an error of its own, tested with the variant")
    given = x.clone().requires_grad_()
    terms = loss_of(sae, given, LossContext(1.0))
    terms.total.backward()
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    W_enc, b_enc, W_dec, b_dec = (getattr(sae, n).detach().clone() for n in names)
    plain = [p.requires_grad_() for p in (W_enc, b_enc, W_dec, b_dec, x.clone())]
    centre = b_dec if sae.affine_encoder().centre is not None else 0
    z = ((plain[4] - centre) @ W_enc + b_enc) * (terms.codes.dense() != 0)
    (plain[4] - z @ W_dec - b_dec).pow(2).sum(-1).mean().backward()
    for mine, expected in zip(
        [*(getattr(sae, n).grad for n in names), given.grad], plain, strict=True
    ):
        torch.testing.assert_close(mine, expected.grad)


def test_what_makes_no_activation_says_so(sae, x):
    codes = sae.encode(x)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    done = sae.training_pass(ActivationBatch(x, grad=grad), LossContext(1.0))
    says = [sae.outer_fit(x, codes) is not None, done.outer is not None, done.x_hat is None]
    assert says == [sae.config.decoder_problem is not None] * 3
    with pytest.raises(UsageError, match="no decoder row") if says[0] else nullcontext():
        sae.decode(codes, x)


def test_a_training_pass_in_float64_is_that_in_float32(sae, x):
    """Also where dead latents are revived."""
    if "aux_coefficient" in type(sae.config).model_fields:
        sae.config = sae.config.model_copy(update={"aux_coefficient": 0.5})
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    context, totals = LossContext(1.0, torch.ones(sae.d_sae, dtype=torch.bool)), []
    for dtype in (torch.float32, torch.float64):
        batch = ActivationBatch(x[:2].to(dtype), grad=grad[:2].to(dtype))
        totals.append(local_loss(sae.to(dtype), batch, context).total.item())
    assert totals[0] == pytest.approx(totals[1], rel=1e-4)

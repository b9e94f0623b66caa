"""Losses and steps of any variant, for tests."""

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.sae.base import AbstractSAE
from saelab.sae.context import LossContext
from saelab.sae.losses import local_loss
from saelab.sae.own_step import OwnStep
from saelab.types import ActivationBatch, LossTerms


def loss_of(
    sae: AbstractSAE,
    x: Float[Tensor, "batch d_in"],
    context: LossContext,
    grad: Float[Tensor, "batch d_in"] | None = None,
) -> LossTerms:
    """The local loss; a gradient SAE gets a random gradient unless it is given one."""
    if grad is None and sae.config.needs_gradient:
        grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    return local_loss(sae, ActivationBatch(x, grad=grad), context)


def optimizer_of(sae: AbstractSAE, lr: float) -> torch.optim.Optimizer | OwnStep:
    """What changes the weights: the variant's own step, or Adam."""
    return sae.own_step() or torch.optim.Adam(sae.parameters(), lr=lr)


def train_step(
    sae: AbstractSAE,
    optimizer: torch.optim.Optimizer | OwnStep,
    x: Float[Tensor, "batch d_in"],
    context: LossContext,
) -> float:
    """One step as the training loop makes it; returns the loss before it.

    `optimizer` is the variant's own step, or what follows the gradient.
    """
    if isinstance(optimizer, OwnStep):
        before = float(loss_of(sae, x, context).total.detach())
        sae.observe(optimizer(ActivationBatch(x), context).codes)
        return before
    optimizer.zero_grad()
    terms = loss_of(sae, x, context)
    sae.observe(terms.codes)
    terms.total.backward()
    sae.before_optimizer_step()
    optimizer.step()
    sae.after_optimizer_step()
    return float(terms.total.detach())


def gradient_of(weights: Tensor) -> Tensor:
    """Their gradient, which there is."""
    assert weights.grad is not None
    return weights.grad


def encoder_gradient(sae: AbstractSAE) -> Float[Tensor, "d_in d_sae"]:
    """The gradient of W_enc, or of the atoms or left factors where these encode."""
    named = dict(sae.named_parameters())
    if (own := named.get("W_enc")) is not None:
        found = own.grad
    else:
        found = named.get("W_left", named.get("W_dec")).grad.T
    assert found is not None
    return found


def made_of(sae: AbstractSAE, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch _"]:
    """The reconstruction of rows, or how well it fits u u^T where it is no activation."""
    codes = sae.encode(x)
    fit = sae.outer_fit(x, codes)
    return sae.decode(codes, x) if fit is None else torch.stack([fit.inner, fit.square], dim=1)

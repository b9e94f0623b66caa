"""SAEs and batches that the tests of several variants share."""

import torch

from saelab.sae.base import AbstractSAE, LossContext
from saelab.sae.losses import local_loss
from saelab.types import ActivationBatch, LossTerms


def loss_of(sae: AbstractSAE, x: torch.Tensor, context: LossContext, grad=None) -> LossTerms:
    """The local loss; a gradient SAE gets a random gradient unless it is given one."""
    if grad is None and sae.config.needs_gradient:
        grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    return local_loss(sae, ActivationBatch(x, grad=grad), context)


def train_step(sae: AbstractSAE, optimizer, x: torch.Tensor, context: LossContext) -> float:
    """One step as the training loop makes it; returns the loss."""
    optimizer.zero_grad()
    terms = loss_of(sae, x, context)
    sae.observe(terms.codes)
    terms.total.backward()
    sae.before_optimizer_step()
    optimizer.step()
    sae.after_optimizer_step()
    return float(terms.total.detach())


def encoder_gradient(sae: AbstractSAE) -> torch.Tensor:
    """`[d_in d_sae]`: of W_enc, or of the atoms where they encode too."""
    own = dict(sae.named_parameters()).get("W_enc")
    found = sae.W_dec.grad.T if own is None else own.grad
    assert found is not None
    return found

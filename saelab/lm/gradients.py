"""dL/dx at a model's sites, where L is the summed next-token cross-entropy (arXiv 2411.10397)."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from saelab.lm.protocol import ModelOutput


def next_token_loss(
    out: ModelOutput, tokens: Int[Tensor, "batch pos"], real: Bool[Tensor, "batch pos"]
) -> Float[Tensor, ""]:
    """Cross-entropy in nats, summed over every real token but the first of each context.

    A sum, so that a context's gradients do not depend on what else is in the batch. Special tokens
    count like others; positions that are not real are neither predicted nor seen by real ones.
    """
    predicts = F.pad(real[:, 1:], (0, 1))
    targets = tokens[:, 1:][real[:, 1:]]
    return out.at(predicts).total(
        lambda logits, part: F.cross_entropy(logits, targets[part], reduction="sum")
    )


def tracked(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The value as a node to differentiate by; the first site of a pass starts the graph."""
    return value.clone() if value.requires_grad else value.detach().requires_grad_()


def site_gradients(
    loss: Float[Tensor, ""], sites: Mapping[str, Float[Tensor, "..."]]
) -> dict[str, Float[Tensor, "..."]]:
    """dL/dx of every site from one backward pass; nothing else keeps a gradient."""
    found = torch.autograd.grad(loss, list(sites.values()))
    return dict(zip(sites, found, strict=True))

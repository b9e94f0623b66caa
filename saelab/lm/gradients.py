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
    """Cross-entropy in nats, summed over every real token except the first of each context.

    It is a sum so that a context's gradients do not depend on the rest of the batch. Special tokens
    count like others. Positions that are not real are not predicted, and real ones do not attend to
    them.
    """
    predicts = F.pad(real[:, 1:], (0, 1))
    targets = tokens[:, 1:][real[:, 1:]]
    return out.at(predicts).total(
        lambda logits, part: F.cross_entropy(logits, targets[part], reduction="sum")
    )


def tracked(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The value as a node for differentiation; the first site of a pass starts the graph."""
    return value.clone() if value.requires_grad else value.detach().requires_grad_()


def site_gradients(
    loss: Float[Tensor, ""], sites: Mapping[str, Float[Tensor, "..."]]
) -> dict[str, Float[Tensor, "..."]]:
    """dL/dx at every site from one backward pass; no other gradient is kept."""
    found = torch.autograd.grad(loss, list(sites.values()))
    return dict(zip(sites, found, strict=True))

"""Latents exchanged between two prompts, and the mask that says which."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.console import progress
from saelab.evaluation.tasks.known import Pair, padded
from saelab.host.host import Host
from saelab.host.splice import written_edits
from saelab.lm.protocol import Edit
from saelab.sae.base import AbstractSAE

BATCH = 32
RATE, EPOCHS = 1e-3, 2
COOLEST = 1e-4


def learn_mask(
    host: Host, cause: Sequence[Pair], isolation: Sequence[Pair], *, seed: int
) -> Float[Tensor, " d_sae"]:
    """Ones for latents that carry over the cause pairs' attribute, zeros for all others.

    A logit per latent, at first 0, is trained with the cross-entropy of the source's first token
    (cause) and of the base's (isolation).
    """
    wanted = [(pair, pair.source.said) for pair in cause]
    wanted += [(pair, pair.base.said) for pair in isolation]
    logit = torch.zeros(host.sae.d_sae, device=host.lm.device, requires_grad=True)
    optimizer = torch.optim.Adam([logit], lr=RATE)
    generator = torch.Generator().manual_seed(seed)
    n_steps = EPOCHS * -(-len(wanted) // BATCH)
    cooling = torch.logspace(0, torch.tensor(COOLEST).log10().item(), n_steps).tolist()
    steps = iter(cooling)
    with progress("Mask", n_steps, "steps") as bar:
        for _ in range(EPOCHS):
            order = torch.randperm(len(wanted), generator=generator).tolist()
            for first in range(0, len(order), BATCH):
                some = [wanted[i] for i in order[first : first + BATCH]]
                with torch.enable_grad():
                    weights = torch.sigmoid(logit / next(steps))
                    loss = _loss(host, [p for p, _ in some], [said for _, said in some], weights)
                    (logit.grad,) = torch.autograd.grad(loss, [logit])
                optimizer.step()
                bar.advance(1)
    return (logit > 0).float().detach()


def _loss(
    host: Host, pairs: Sequence[Pair], said: Sequence[int], weights: Float[Tensor, " d_sae"]
) -> Float[Tensor, ""]:
    tokens, last = padded([pair.base.tokens for pair in pairs])
    out = host.lm.run(tokens.to(host.lm.device), edits=exchanged(host, pairs, weights))
    target = torch.tensor(said, device=host.lm.device)
    return out.at(last.to(host.lm.device)).total(
        lambda logits, part: torch.nn.functional.cross_entropy(
            logits, target[part], reduction="sum"
        )
    ) / len(said)


def exchanged(
    host: Host, pairs: Sequence[Pair], weights: Float[Tensor, " d_sae"] | None
) -> dict[str, Edit]:
    """Edits of the base prompts at their entities: z + weights (z of the source - z), decoded.

    The error is dropped. Without weights, the whole activation is the source's.
    """
    row = torch.arange(len(pairs), device=host.lm.device)
    at = torch.tensor([pair.base.at for pair in pairs], device=host.lm.device)
    source = _stacked(host, [pair.source.x for pair in pairs])
    whole = _stacked(host, [pair.source.written for pair in pairs])

    def change(
        x: Float[Tensor, "batch pos d_in"], value: Float[Tensor, "batch pos d_out"]
    ) -> Float[Tensor, "batch pos d_out"]:
        edited = value.clone()
        made = whole if weights is None else _mixed(host.sae, x[row, at], source, weights)
        edited[row, at] = made.to(value)
        return edited

    return written_edits(host, change)


def _mixed(
    sae: AbstractSAE,
    x: Float[Tensor, "batch d_in"],
    source: Float[Tensor, "batch d_in"],
    weights: Float[Tensor, " d_sae"],
) -> Float[Tensor, "batch d_out"]:
    with torch.no_grad():
        x = x.to(sae.W_dec.dtype)
        codes = sae.encode(x)
        moved = sae.encode(source.to(x)).dense() - codes.dense()
        plain = sae.decode(codes, x)
    return plain + (moved * weights.to(moved)) @ sae.W_dec.detach()


def _stacked(host: Host, rows: Sequence[Tensor]) -> Float[Tensor, "batch d"]:
    return torch.stack(list(rows)).to(host.lm.device)

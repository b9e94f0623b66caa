"""What a set of latents does to a prompt's logits: taken away, kept alone, or scaled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.analysis.circuits.edits import Members, ablation_edits
from saelab.config import UsageError
from saelab.host.host import Host, by_layer
from saelab.lm.protocol import Edit, LanguageModel

Mode = Literal["ablate", "keep only", "scale"]
LatentPlace = tuple[str, int, int]
"""An SAE's name, a latent of it, and the position where it acts."""


@dataclass(frozen=True)
class Change:
    """What is done to some latents, each at its own position.

    Attributes:
        latents: which.
        mode: set them to zero, set all others to zero, or multiply them by `factor`.
        factor: for `scale`.
    """

    latents: Sequence[LatentPlace]
    mode: Mode = "ablate"
    factor: float = 2.0


@dataclass(frozen=True)
class Intervened:
    """Logits at one position of the live model, as it is and with the latents changed.

    Attributes:
        before, after: logits.
        latent: the watched latent's value before and after, if one was named.
    """

    before: Float[Tensor, " d_vocab"]
    after: Float[Tensor, " d_vocab"]
    latent: tuple[float, float] | None = None


@torch.no_grad()
def intervene(
    lm: LanguageModel,
    hosts: Sequence[Host],
    tokens: Int[Tensor, " pos"],
    change: Change,
    *,
    position: int = -1,
    watched: LatentPlace | None = None,
) -> Intervened:
    """Run the prompt as it is and with the change.

    The change is made where each SAE reads what the changed model computes; errors, attention and
    MLPs run as they do. A latent's value is watched with the SAEs before its own changed.

    Args:
        lm: the model.
        hosts: its SAEs; a cross-layer transcoder's latents are named by layer (`Host.by_layer`).
        tokens: the prompt.
        change: what is done to which latents.
        position: whose logits are read.
        watched: a latent whose value is read, too.

    Raises:
        UsageError: a latent is of none of the SAEs or not in the prompt.
    """
    hosts = by_layer(hosts)
    members = _members(hosts, tokens, change.latents)
    alone = change.mode == "keep only"
    keep = members if alone else {name: ~mask for name, mask in members.items()}
    left = change.factor if change.mode == "scale" else 0.0

    def edits(of: Sequence[Host]) -> dict[str, Edit]:
        return ablation_edits(of, tokens[None], keep, factor=left)

    before, after = (
        lm.run(tokens[None], edits=each).behind(position).logits()[0] for each in ({}, edits(hosts))
    )
    if watched is None:
        return Intervened(before, after)
    _members(hosts, tokens, [watched])
    own = next(d for d in hosts if d.name == watched[0])
    earlier = edits([d for d in hosts if d.place.depth < own.place.depth])
    value, changed = (_value(lm, own, tokens, watched, done) for done in ({}, earlier))
    return Intervened(before, after, (value, changed))


def _members(
    hosts: Sequence[Host], tokens: Int[Tensor, " pos"], chosen: Sequence[LatentPlace]
) -> Members:
    members = {
        d.name: torch.zeros(len(tokens), d.sae.d_sae, dtype=torch.bool, device=tokens.device)
        for d in hosts
    }
    for name, latent, position in chosen:
        if name not in members:
            raise UsageError(
                f"Latent {latent} is of {name}, which is not among the SAEs "
                f"{', '.join(members) or '(none)'}."
            )
        n_pos, d_sae = members[name].shape
        if not (0 <= latent < d_sae and 0 <= position < n_pos):
            raise UsageError(
                f"{name} has no latent {latent} at position {position}: it has {d_sae} latents, "
                f"and the prompt {n_pos} tokens."
            )
        members[name][position, latent] = True
    return members


def _value(
    lm: LanguageModel,
    host: Host,
    tokens: Int[Tensor, " pos"],
    watched: LatentPlace,
    edits: Mapping[str, Edit],
) -> float:
    _, latent, position = watched
    sites = [host.reads, host.writes]
    seen = lm.run(tokens[None], edits=edits, hooks=sites).activations
    codes, _ = host.encode(tokens[None], *(seen[site] for site in sites))
    return float(codes.dense()[position, latent])

"""Latents of a subject, and the edits that clamp them; see `saelab.evaluation.tasks.unlearning`."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.evaluation.tasks.questions import EditsOf
from saelab.host.host import Host
from saelab.host.splice import written_edits
from saelab.lm.protocol import Edit

SHARES = (0.001, 0.01)
"""Latents that fire on a larger share of the ordinary text's tokens are kept."""
N_LATENTS = (10, 20)


def distinct_sets(
    forget: Float[Tensor, " d_sae"], ordinary: Float[Tensor, " d_sae"]
) -> list[tuple[float, Int[Tensor, " n"]]]:
    """The first latents for each share and number, each set once, with the smallest share.

    Where few latents qualify, several shares and numbers choose the same ones.
    """
    found: dict[tuple[int, ...], tuple[float, Int[Tensor, " n"]]] = {}
    for share in SHARES:
        best = best_latents(forget, ordinary, share)
        for n in N_LATENTS:
            if len(latents := best[:n]):
                found.setdefault(tuple(latents.tolist()), (share, latents))
    return list(found.values())


def best_latents(
    forget: Float[Tensor, " d_sae"], ordinary: Float[Tensor, " d_sae"], share: float
) -> Int[Tensor, " n"]:
    """Latents that fire on the subject's text, and on less than `share` of the ordinary one.

    Those that fire most often on the subject's text come first.
    """
    score = forget.where(ordinary < share, torch.zeros_like(forget))
    order = score.sort(descending=True, stable=True).indices
    return order[score[order] > 0]


def clamping(host: Host, latents: Int[Tensor, " n"], size: float) -> EditsOf:
    """The edits of a batch of prompts that set latents to -size where they fire."""
    return lambda tokens: clamped(host, tokens, latents, size)


def clamped(
    host: Host, tokens: Int[Tensor, "batch pos"], latents: Int[Tensor, " n"], size: float
) -> dict[str, Edit]:
    """Edits that set latents to -size where they fire, in the sign of the code; the error stays."""

    def change(
        x: Float[Tensor, "batch pos d_in"], value: Float[Tensor, "batch pos d_out"]
    ) -> Float[Tensor, "batch pos d_out"]:
        where = host.domain.covers(tokens, x, target=value)
        if not bool(where.any()):
            return value
        z = host.sae.encode(x[where].to(host.sae.W_dec.dtype)).dense()[:, latents]
        delta = (-size * z.sign() - z) * (z != 0)
        edited = value.clone()
        edited[where] = (value[where] + delta @ host.sae.W_dec[latents]).to(value.dtype)
        return edited

    latents = latents.to(host.lm.device)
    return written_edits(host, change)

"""Whether a change took effect: checked against the dense codes, before its results are believed.

A steering hook that does nothing, or writes what the error term takes back, is a known way to get
plausible and empty results.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.analysis.steering.edits import latent_edits
from saelab.analysis.steering.interventions import Intervention
from saelab.host.host import Host

NOTICEABLE = 1e-3
"""Relative length of a change that must show in the logits."""


@dataclass(frozen=True)
class Effect:
    """What a change did to the activations.

    Attributes:
        n_rows: positions that were to be changed, and where the SAE is applied.
        n_changed: those whose activation differs from the plain model's.
        shift: mean of ||x' - x|| / ||x|| over them.
        n_left_out: positions that were to be changed and were not, since their norms are larger
            than any that the SAE was trained on.
    """

    n_rows: int
    n_changed: int
    shift: float
    n_left_out: int = 0


@torch.no_grad()
def verify(
    host: Host,
    tokens: Int[Tensor, "batch pos"],
    changes: Sequence[Intervention],
    mask: Bool[Tensor, "batch pos"],
) -> Effect:
    """Run the model plain and changed, and compare the site with what the changes ask for.

    Raises:
        RuntimeError: the site's activations are not as asked, or the logits did not notice.
    """
    plain = host.lm.run(tokens, hooks=host.sites)
    changed = host.lm.run(tokens, edits=latent_edits(host, changes, mask), hooks=[host.writes])
    before, after = plain.activations[host.writes], changed.activations[host.writes]
    asked_for = int(mask.sum())
    mask = host.applied(mask, plain.activations[host.reads], before)
    if not bool(mask.any()):
        _check_untouched(before, after, mask, host.writes)
        return Effect(0, 0, 0.0, asked_for)
    _check_untouched(before, after, mask, host.writes)
    x, found = before[mask].float(), after[mask].float()
    read = plain.activations[host.reads][mask].float()
    asked = _asked(host, read, x, mask.nonzero()[:, 0], changes)
    # Rounding is relative to the largest coordinates, in the model's precision and in float32's.
    close = torch.finfo(before.dtype).eps + 256 * torch.finfo(torch.float32).eps
    if (worst := float((found - asked).abs().max())) > close * float(asked.abs().max()):
        raise RuntimeError(f"Steering at {host.writes} missed what was asked by {worst:.3g}.")
    shift = (found - x).norm(dim=1) / x.norm(dim=1).clamp_min(1e-12)
    before, after = plain.at(mask), changed.at(mask)
    noticed = torch.cat(
        [(before.logits(part) != after.logits(part)).any(dim=1) for part in before.pieces()]
    )
    if bool(((shift > NOTICEABLE) & ~noticed).any()):
        raise RuntimeError(f"The logits did not notice the change at {host.writes}.")
    n_changed = int((found != x).any(dim=1).sum())
    return Effect(len(x), n_changed, float(shift.mean()), asked_for - len(x))


def _check_untouched(
    before: Float[Tensor, "batch pos d_in"],
    after: Float[Tensor, "batch pos d_in"],
    mask: Bool[Tensor, "batch pos"],
    site: str,
) -> None:
    if not torch.equal(before[~mask], after[~mask]):
        raise RuntimeError(f"Steering at {site} changed positions that it was to leave alone.")


def _asked(
    host: Host,
    read: Float[Tensor, "row d_in"],
    written: Float[Tensor, "row d_out"],
    context: Int[Tensor, " row"],
    changes: Sequence[Intervention],
) -> Float[Tensor, "row d_out"]:
    """The same by another way: every code written out, changed in place, and decoded."""
    sae = host.sae
    read = read.to(sae.W_dec.dtype)
    codes = sae.encode(read).dense()
    wanted = codes.clone()
    for row, number in enumerate(context.tolist()):
        change = changes[number if len(changes) > 1 else 0]
        for latent in change.latents:
            wanted[row, latent] = _wanted(host, change, codes[row], latent)
    before, after = (part @ sae.W_dec + sae.offset(read) for part in (codes, wanted))
    return after if changes[0].error == "drop" else written + (after - before)


def _wanted(
    host: Host, change: Intervention, codes: Float[Tensor, " d_sae"], latent: int
) -> Tensor:
    """What the latent's code is to become, given all codes of its row."""
    if change.op == "ablate":
        return torch.zeros(())
    if change.op == "scale":
        return codes[latent] * change.amount
    unit = {"a_max": codes.abs().max(), "absolute": torch.ones(())}.get(change.unit)
    if unit is None:
        assert host.maxima is not None
        unit = host.maxima[latent]
    return change.amount * unit + (codes[latent] if change.op == "add" else 0)

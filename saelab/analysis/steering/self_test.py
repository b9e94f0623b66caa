"""Checks that a change took effect, against dense codes, before results are used.

A steering hook that does nothing, or that the error term cancels, is a known cause of plausible but
empty results.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.analysis.steering.edits import latent_edits
from saelab.analysis.steering.interventions import Intervention
from saelab.host.host import Host
from saelab.sae.decoder import atoms_of, dtype_of

NOTICEABLE = 1e-3
"""Relative length of a change that must be visible in the logits."""
TF32 = 2**-10
"""What a GPU's products lose, relatively, where `torch.set_float32_matmul_precision` allows it."""


@dataclass(frozen=True)
class Effect:
    """The effect of a change on the activations.

    Attributes:
        n_rows: positions to change where the SAE is applied.
        n_changed: positions whose activation differs from the plain model's.
        shift: mean of ||x' - x|| / ||x|| over these.
        n_left_out: positions that were not changed because their norms exceed those that the SAE
            was trained on.
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
    """Run the plain and the changed model, and compare the site with the requested changes.

    Raises:
        RuntimeError: the site's activations are wrong, or the logits did not change.
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
    # Rounding is relative to the largest coordinates, in the model's precision and in float32.
    close = torch.finfo(before.dtype).eps + 256 * torch.finfo(torch.float32).eps
    if before.is_cuda and torch.get_float32_matmul_precision() != "highest":
        close += TF32
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
    """The expected result by a second method: dense codes, changed in place, and decoded."""
    sae = host.sae
    read = read.to(dtype_of(sae))
    codes = sae.encode(read).dense()
    wanted = codes.clone()
    for row, number in enumerate(context.tolist()):
        change = changes[number if len(changes) > 1 else 0]
        for latent in change.latents:
            wanted[row, latent] = _wanted(host, change, codes[row], latent)
    before, after = (part @ atoms_of(sae) + sae.offset(read) for part in (codes, wanted))
    return after if changes[0].error == "drop" else written + (after - before)


def _wanted(
    host: Host, change: Intervention, codes: Float[Tensor, " d_sae"], latent: int
) -> Tensor:
    """The requested code of the latent, given all codes of its row."""
    if change.op == "ablate":
        return torch.zeros(())
    if change.op == "scale":
        return codes[latent] * change.amount
    unit = {"a_max": codes.abs().max(), "absolute": torch.ones(())}.get(change.unit)
    if unit is None:
        assert host.maxima is not None
        unit = host.maxima[latent]
    return change.amount * unit + (codes[latent] if change.op == "add" else 0)

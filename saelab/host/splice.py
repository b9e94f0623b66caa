"""The model with SAEs in place of what they reconstruct."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.host.host import Host
from saelab.lm.protocol import Edit
from saelab.sae.decoder import dtype_of
from saelab.sites import parts_of
from saelab.training.domain import norms

Rows = Callable[[Host, Float[Tensor, "row d_in"]], Float[Tensor, "row d_out"]]
"""What is put at rows of the site that an SAE writes, from what it reads there."""
Applied = Callable[[Host, Bool[Tensor, "context pos"]], object]


def reconstruction(host: Host, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_out"]:
    """What the SAE makes of what it reads."""
    x = x.to(dtype_of(host.sae))
    return host.sae.decode(host.sae.encode(x), x)


def splice_edits(
    hosts: Sequence[Host],
    tokens: Int[Tensor, "context pos"],
    rows: Rows = reconstruction,
    seen: Applied | None = None,
) -> dict[str, Edit]:
    """Edits under which all of these SAEs replace what they write, in one forward pass.

    Each reads what the changed model computes. Where it is not applied (see `Domain`), the model's
    own value stays. `seen` is told where each was applied.
    """
    edits: dict[str, Edit] = {}
    for host in hosts:
        if host.domain.parts:
            edits |= _joint_edits(host, tokens, rows, seen)
            continue
        edits |= written_edits(host, _replace(host, tokens, rows, seen))
    return edits


def written_edits(host: Host, change: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Edit]:
    """Edits that put `change(x, value)` where the SAE writes `value`, from what it reads, `x`."""
    inputs: list[Tensor] = []
    reading = {host.reads: keep(inputs)} if host.is_transcoder else {}
    return reading | {host.writes: lambda value: change(inputs[0] if inputs else value, value)}


def _joint_edits(
    host: Host, tokens: Int[Tensor, "context pos"], rows: Rows, seen: Applied | None
) -> dict[str, Edit]:
    """The edits of an SAE of several sites: a site is replaced by what is read up to it.

    What is read later counts as zeros; a cross-layer transcoder does not use it.
    """
    domain, widths = host.domain, host.sae.widths
    read: list[Tensor] = []
    edits: dict[str, Edit] = {}

    def reading(layer: int, value: Float[Tensor, "context pos d"]) -> Tensor:
        read[layer:] = [value.float() * domain.parts[layer].factor]
        return value

    def writing(layer: int, value: Float[Tensor, "context pos d"]) -> Tensor:
        later = [value.new_zeros(*value.shape[:2], width).float() for width in widths[layer + 1 :]]
        x = torch.cat([*read[: layer + 1], *later], dim=-1)
        part = domain.target_parts[layer]
        applies = domain.places(tokens.to(x.device)).to(x.device) & domain.within(x)
        if part.max_norm is not None:
            applies &= norms(value) <= part.max_norm
        if seen is not None:
            seen(host, applies)
        start = sum(each.width for each in domain.target_parts[:layer])
        made = rows(host, x[applies])[:, start : start + part.width] / part.factor
        edited = value.clone()
        edited[applies] = made.to(value.dtype)
        return edited

    hooks = zip(parts_of(host.reads), parts_of(host.writes), strict=True)
    for layer, (reads, writes) in enumerate(hooks):
        edits[reads] = partial(reading, layer)
        edits[writes] = partial(writing, layer)
    return edits


def keep(inputs: list[Tensor]) -> Edit:
    """An edit that changes nothing and leaves the value in `inputs`."""

    def edit(value: Tensor) -> Tensor:
        inputs[:] = [value]
        return value

    return edit


def _replace(
    host: Host, tokens: Int[Tensor, "context pos"], rows: Rows, seen: Applied | None
) -> Callable[[Tensor, Tensor], Tensor]:
    def change(
        x: Float[Tensor, "context pos d_in"], value: Float[Tensor, "context pos d_out"]
    ) -> Float[Tensor, "context pos d_out"]:
        applies = host.domain.covers(tokens.to(x.device), x, target=value)
        if seen is not None:
            seen(host, applies)
        edited = value.clone()
        edited[applies] = rows(host, x[applies]).to(value.dtype)
        return edited

    return change

"""The model with SAEs in place of what they reconstruct."""

from collections.abc import Callable, Sequence

from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.host.host import Host
from saelab.lm.protocol import Edit

Rows = Callable[[Host, Float[Tensor, "row d_in"]], Float[Tensor, "row d_out"]]
"""What is put at rows of the site that an SAE writes, from what it reads there."""
Applied = Callable[[Host, Bool[Tensor, "context pos"]], object]


def reconstruction(host: Host, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_out"]:
    """What the SAE makes of what it reads."""
    x = x.to(host.sae.W_dec.dtype)
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
        inputs: list[Tensor] = []
        if host.is_transcoder:
            edits[host.reads] = keep(inputs)
        edits[host.writes] = _replace(host, tokens, rows, inputs, seen)
    return edits


def keep(inputs: list[Tensor]) -> Edit:
    """An edit that changes nothing and leaves the value in `inputs`."""

    def edit(value: Tensor) -> Tensor:
        inputs[:] = [value]
        return value

    return edit


def _replace(
    host: Host,
    tokens: Int[Tensor, "context pos"],
    rows: Rows,
    inputs: list[Tensor],
    seen: Applied | None,
) -> Edit:
    def edit(value: Float[Tensor, "context pos d_out"]) -> Float[Tensor, "context pos d_out"]:
        x = inputs[0] if inputs else value
        applies = host.domain.covers(tokens.to(x.device), x, target=value)
        if seen is not None:
            seen(host, applies)
        edited = value.clone()
        edited[applies] = rows(host, x[applies]).to(value.dtype)
        return edited

    return edit

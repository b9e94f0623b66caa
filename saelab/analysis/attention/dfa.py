"""Direct feature attribution: which head, and which source token, makes an attention latent fire.

A latent of an SAE on hook_z is affine in z, and z is attention times values:
f = sum over heads h and sources s of pattern[h, d, s] * v[s, h] . a[h], plus a constant, where a
is the latent's encoder row (arXiv 2406.17759).
"""

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from saelab import drawing
from saelab.analysis.circuits.frozen import Active, Frozen
from saelab.config import UsageError
from saelab.sites import Place


@dataclass(frozen=True)
class DirectAttribution:
    """Where a latent's value comes from.

    Attributes:
        name, layer, latent, position: which latent, at which destination token.
        by_source_head: contributions, in the latent's units; zero for sources that lie ahead.
        constant: what the encoder adds whatever is read (b_enc, and b_dec where it is subtracted).
        value: the latent's activation: all contributions plus the constant.
    """

    name: str
    layer: int
    latent: int
    position: int
    by_source_head: Float[Tensor, "src head"]
    constant: float
    value: float

    @property
    def by_head(self) -> Float[Tensor, " head"]:
        """Contributions of heads, over all sources."""
        return self.by_source_head.sum(0)

    @property
    def by_source(self) -> Float[Tensor, " src"]:
        """Contributions of source tokens, over all heads."""
        return self.by_source_head.sum(1)

    figure = drawing.figure


def dfa(
    pattern: Float[Tensor, "head src"],
    v: Float[Tensor, "src head d_head"],
    encoder: Float[Tensor, "n d_in"],
) -> Float[Tensor, "n src head"]:
    """Contributions to n functionals of z at one destination; `v` has a value for every head."""
    by_head = rearrange(encoder, "n (h e) -> n h e", h=len(pattern))
    # Values are read first: an array of [src, head * d_head] a latent is never made.
    read = einsum(v, by_head, "s h e, n h e -> n s h")
    return read * pattern.T


def attention_sae(frozen: Frozen, layer: int) -> Active:
    """The attention-output SAE of a layer.

    Raises:
        UsageError: there is none.
    """
    number = frozen.at_place.get(Place(layer, "heads"))
    if number is None:
        have = [a.place.layer for a in frozen.actives if a.place.kind == "heads"]
        raise UsageError(
            f"No SAE reads blocks.{layer}.attn.hook_z; layers with one: "
            f"{', '.join(map(str, have)) or 'none'}."
        )
    return frozen.actives[number]


@torch.no_grad()
def direct_feature_attribution(
    frozen: Frozen, layer: int, position: int, latent: int | None = None
) -> tuple[DirectAttribution, ...]:
    """The attributions of one latent, or of all that fire at a position, strongest first.

    Raises:
        UsageError: no SAE reads the layer's heads, the position is not in the prompt, or the latent
            does not fire there.
    """
    active = attention_sae(frozen, layer)
    if not 0 <= position < frozen.n_pos:
        raise UsageError(
            f"Position {position} is not in the prompt, which has 0 to {frozen.n_pos - 1}."
        )
    codes, span = active.codes, active.at[position]
    record = frozen.record.layers[layer]
    entries = list(range(span.start, span.stop))
    if latent is not None:
        number = frozen.at_place[active.place]
        entries = [frozen.latent_index(number, latent, position) - frozen.spans[number].start]
    entries.sort(key=lambda entry: -abs(float(codes.values[entry])))
    found = dfa(record.pattern[0, :, position], record.v[0], codes.encoder[entries])
    return tuple(
        DirectAttribution(
            active.name,
            layer,
            int(codes.latent[entry]),
            position,
            part,
            float(codes.constant[entry]),
            float(codes.values[entry]),
        )
        for entry, part in zip(entries, found, strict=True)
    )

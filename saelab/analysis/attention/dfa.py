"""Direct feature attribution: the heads and source tokens that make an attention latent fire.

A latent of an SAE on hook_z is affine in z, and z is attention times values:
f = sum over heads h and sources s of pattern[h, d, s] * v[s, h] . a[h], plus a constant, where a
is the latent's encoder row (arXiv 2406.17759). A latent of an SAE on hook_attn_out reads z through
W_O, and through the norm after it if there is one: a[h] = W_O[h] times its encoder row. So an edge
from an earlier latent j is W_dec[j] W_V[h] W_O[h] W_enc[:, i] (arXiv 2405.13868; the place of W_O
is inferred).
"""

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from saelab import drawing
from saelab.analysis.circuits.active import Active
from saelab.analysis.circuits.frozen import Frozen
from saelab.config import UsageError
from saelab.lm.linear.paths import LayerWeights
from saelab.sites import Place, PlaceKind


@dataclass(frozen=True)
class DirectAttribution:
    """The parts of a latent's value by head and source token.

    Attributes:
        name, layer, latent, position: the latent and its destination token.
        by_source_head: contributions in the latent's units; zero for later sources.
        constant: the encoder's constant (b_enc, and b_dec if it is subtracted), and what it reads
            of b_O.
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
        """The contribution of each head, over all sources."""
        return self.by_source_head.sum(0)

    @property
    def by_source(self) -> Float[Tensor, " src"]:
        """The contribution of each source token, over all heads."""
        return self.by_source_head.sum(1)

    figure = drawing.figure


def dfa(
    pattern: Float[Tensor, "head src"],
    v: Float[Tensor, "src head d_head"],
    encoder: Float[Tensor, "n d_in"],
) -> Float[Tensor, "n src head"]:
    """Contributions to n functionals of z at one destination; `v` has values for every head."""
    by_head = rearrange(encoder, "n (h e) -> n h e", h=len(pattern))
    # Values are read first, so an array of [src, head * d_head] per latent is never made.
    read = einsum(v, by_head, "s h e, n h e -> n s h")
    return read * pattern.T


OF_ATTENTION: tuple[PlaceKind, ...] = ("heads", "attention")
"""Places whose latents are sums over heads and source tokens."""


def attention_sae(frozen: Frozen, layer: int, name: str | None = None) -> Active:
    """The attention SAE of a layer: the one of this name, else on hook_z, else on hook_attn_out.

    Raises:
        UsageError: no such SAE reads this layer's attention.
    """
    places = [Place(layer, kind) for kind in OF_ATTENTION]
    found = [frozen.actives[frozen.at_place[p]] for p in places if p in frozen.at_place]
    found = [active for active in found if name in (None, active.name)]
    if not found:
        have = [a.place.layer for a in frozen.actives if a.place.kind in OF_ATTENTION]
        raise UsageError(
            f"No SAE{'' if name is None else f' {name}'} reads blocks.{layer}.attn.hook_z or "
            f"hook_attn_out; layers with one: {', '.join(map(str, have)) or 'none'}."
        )
    return found[0]


def read_of_heads(
    frozen: Frozen, active: Active, entries: list[int]
) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, " n"]]:
    """What latents read of the heads' outputs (hook_z, flattened), and their constants."""
    codes, layer = active.codes, active.place.layer
    encoder, constant = codes.encoder[entries], codes.constant[entries]
    if active.place.kind == "heads":
        return encoder, constant
    scale = frozen.record.layers[layer].attn_post_scale[0, codes.row[entries]]
    weights = frozen.weights.layers[layer]
    return read_through_output(weights, encoder, constant, None if active.before_post else scale)


def read_through_output(
    weights: LayerWeights,
    encoder: Float[Tensor, "n d_model"],
    constant: Float[Tensor, " n"],
    scale: Float[Tensor, "n 1"] | None,
) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, " n"]]:
    """The same for functionals of attention's output; `scale`: of a post-norm that comes first."""
    if scale is not None:
        encoder = weights.attn_post.transpose(encoder, scale)
    return encoder @ weights.W_O.flatten(0, 1).T, constant + encoder @ weights.b_O


@torch.no_grad()
def direct_feature_attribution(
    frozen: Frozen, layer: int, position: int, latent: int | None = None, name: str | None = None
) -> tuple[DirectAttribution, ...]:
    """The attributions of one latent, or of all that fire at a position, strongest first.

    Raises:
        UsageError: no SAE (of this name) reads the layer's attention, the position is outside the
            prompt, or the latent does not fire there.
    """
    active = attention_sae(frozen, layer, name)
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
    read, constants = read_of_heads(frozen, active, entries)
    found = dfa(record.pattern[0, :, position], record.v[0], read)
    return tuple(
        DirectAttribution(
            active.name,
            layer,
            int(codes.latent[entry]),
            position,
            part,
            float(constant),
            float(codes.values[entry]),
        )
        for entry, part, constant in zip(entries, found, constants, strict=True)
    )

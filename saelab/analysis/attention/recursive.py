"""Recursive direct feature attribution: from an attention latent back through its source tokens.

At source s, v[s, h] = LN1(r_s) W_V[h] + b_V[h] with r_s the residual stream, which is a sum of
components c (latents of SAEs below, errors, MLPs, embeddings). With the norm's scale held at its
value, each contributes sum over heads h of pattern[h, d, s] * lin(c) . read[h], where
read[h] = W_V[h] a[h] and lin is the norm without its bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from saelab.analysis.attention.components import residual_components
from saelab.analysis.attention.dfa import attention_sae, direct_feature_attribution
from saelab.analysis.circuits.frozen import Frozen
from saelab.analysis.circuits.nodes import Node
from saelab.config import Config
from saelab.sites import Place


class RecursionOptions(Config):
    """How far a recursive attribution goes."""

    n_sources: int = Field(default=3, gt=0)
    """Source tokens to follow at each latent, those with the largest |contribution|."""
    threshold: float = Field(default=0.05, ge=0)
    """Smallest |contribution| to keep, as a share of |value| of the latent that gets it."""
    depth: int = Field(default=3, gt=0)
    """How many latents deep."""


@dataclass(frozen=True)
class SourceAttribution:
    """What one source token gives an attention latent, taken apart.

    Attributes:
        position: of the source.
        nodes: components of the residual stream there, and last the constants on the way (the
            norm's bias and b_V).
        by_node_head: contributions in the latent's units, which sum to the source's.
    """

    position: int
    nodes: tuple[Node, ...]
    by_node_head: Float[Tensor, "node head"]

    @property
    def by_node(self) -> Float[Tensor, " node"]:
        """Contributions over all heads."""
        return self.by_node_head.sum(1)


@dataclass(frozen=True)
class FollowedEdge:
    """One contribution that a recursive attribution followed or ended in.

    Attributes:
        target: the attention latent that gets it.
        source: what gives it.
        weight: how much, in the target's units.
        depth: 0 for contributions to the latent that was asked for.
    """

    target: Node
    source: Node
    weight: float
    depth: int


@torch.no_grad()
def source_attribution(
    frozen: Frozen, layer: int, dest: int, latent: int, source: int
) -> SourceAttribution:
    """What the residual stream at token `source` gives the latent at token `dest`.

    Raises:
        UsageError: no SAE reads the layer's heads, or the latent does not fire at `dest`.
    """
    active = attention_sae(frozen, layer)
    number = frozen.at_place[Place(layer, "heads")]
    entry = frozen.latent_index(number, latent, dest) - frozen.spans[number].start
    weights, record = frozen.weights.layers[layer], frozen.record.layers[layer]
    pattern = record.pattern[0, :, dest, source]
    a = rearrange(active.codes.encoder[entry], "(h e) -> h e", h=len(pattern))
    read = einsum(pattern, weights.W_V, a, "h, h m e, h e -> m h")
    parts = residual_components(frozen, layer, source)
    linear = weights.ln1.linear(parts.vectors, record.ln1_scale[0, source])
    constants = torch.stack(
        [weights.ln1.bias @ read, einsum(pattern, weights.b_V, a, "h, h e, h e -> h")]
    )
    nodes = tuple(Node("bias", f"{kind} {layer}", layer, source) for kind in ("ln1", "b_V"))
    return SourceAttribution(source, (*parts.nodes, *nodes), torch.cat([linear @ read, constants]))


def recursive_attribution(
    frozen: Frozen,
    layer: int,
    position: int,
    latent: int,
    options: RecursionOptions | None = None,
) -> tuple[FollowedEdge, ...]:
    """The contributions to an attention latent, and to the attention latents among them, and so on.

    Args:
        frozen: the prompt.
        layer: of the latent.
        position: where it fires.
        latent: its number.
        options: how far to follow.

    Raises:
        UsageError: no SAE reads the layer's heads, or the latent does not fire there.
    """
    options = options or RecursionOptions()
    (top,) = direct_feature_attribution(frozen, layer, position, latent)
    target = Node("latent", top.name, layer, position, latent, top.value)
    steps: list[FollowedEdge] = []
    waiting, seen = [(target, 0)], {target}
    while waiting:
        node, level = waiting.pop(0)
        found = _inputs(frozen, node, options)
        steps += [FollowedEdge(node, source, weight, level) for source, weight in found]
        for source, _ in found:
            if source not in seen and level + 1 < options.depth and _is_attention(frozen, source):
                seen.add(source)
                waiting.append((source, level + 1))
    return tuple(steps)


def _inputs(frozen: Frozen, node: Node, options: RecursionOptions) -> list[tuple[Node, float]]:
    """The large contributions to one latent, over the sources that give it most."""
    assert node.latent is not None
    assert node.position is not None
    (direct,) = direct_feature_attribution(frozen, node.layer, node.position, node.latent)
    sources: Sequence[int] = (
        direct.by_source.abs().topk(min(options.n_sources, frozen.n_pos)).indices.tolist()
    )
    found = []
    for source in sources:
        given = source_attribution(frozen, node.layer, node.position, node.latent, source)
        pairs = zip(given.nodes, given.by_node.tolist(), strict=True)
        found += [(n, w) for n, w in pairs if abs(w) >= options.threshold * abs(node.value)]
    return sorted(found, key=lambda pair: -abs(pair[1]))


def _is_attention(frozen: Frozen, node: Node) -> bool:
    number = frozen.at_place.get(Place(node.layer, "heads"))
    return node.kind == "latent" and number is not None and frozen.actives[number].name == node.name

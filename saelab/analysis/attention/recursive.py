"""Recursive direct feature attribution: from an attention latent back through its source tokens.

At source s, v[s, h] = LN1(r_s) W_V[h] + b_V[h]. r_s is the residual stream, a sum of components c
(latents of SAEs below, errors, MLPs, embeddings). With the norm's scale held fixed, each component
contributes sum over heads h of pattern[h, d, s] * lin(c) . read[h], where read[h] = W_V[h] a[h] and
lin is the norm without its bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from saelab.analysis.attention.components import residual_components
from saelab.analysis.attention.dfa import (
    OF_ATTENTION,
    attention_sae,
    direct_feature_attribution,
    read_of_heads,
)
from saelab.analysis.circuits.frozen import Frozen
from saelab.analysis.circuits.nodes import Node
from saelab.config import Config


class RecursionOptions(Config):
    """How far a recursive attribution goes."""

    n_sources: int = Field(default=3, gt=0)
    """Source tokens to follow at each latent: those with the largest |contribution|."""
    threshold: float = Field(default=0.05, ge=0)
    """Smallest |contribution| to keep, as a share of |value| of the receiving latent."""
    depth: int = Field(default=3, gt=0)
    """How many latents deep to follow."""


@dataclass(frozen=True)
class SourceAttribution:
    """The contributions of one source token to an attention latent, by component.

    Attributes:
        position: position of the source.
        nodes: components of the residual stream there; the last is the constants (the norm's bias
            and b_V).
        by_node_head: contributions in the latent's units; they sum to the source's contribution.
    """

    position: int
    nodes: tuple[Node, ...]
    by_node_head: Float[Tensor, "node head"]

    @property
    def by_node(self) -> Float[Tensor, " node"]:
        """Contributions of each component over all heads."""
        return self.by_node_head.sum(1)


@dataclass(frozen=True)
class FollowedEdge:
    """One contribution that a recursive attribution followed or ended with.

    Attributes:
        target: the attention latent that receives it.
        source: the node that it comes from.
        weight: its size in the target's units.
        depth: 0 for contributions to the given latent.
    """

    target: Node
    source: Node
    weight: float
    depth: int


@torch.no_grad()
def source_attribution(
    frozen: Frozen, layer: int, dest: int, latent: int, source: int, name: str | None = None
) -> SourceAttribution:
    """The contributions of the residual stream at token `source` to the latent at token `dest`.

    Raises:
        UsageError: no SAE (of this name) reads the layer's attention, or the latent does not fire
            at `dest`.
    """
    active = attention_sae(frozen, layer, name)
    number = frozen.at_place[active.place]
    entry = frozen.latent_index(number, latent, dest) - frozen.spans[number].start
    weights, record = frozen.weights.layers[layer], frozen.record.layers[layer]
    pattern = record.pattern[0, :, dest, source]
    whole, _ = read_of_heads(frozen, active, [entry])
    a = rearrange(whole[0], "(h e) -> h e", h=len(pattern))
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
    name: str | None = None,
) -> tuple[FollowedEdge, ...]:
    """The contributions to an attention latent, to the attention latents among them, and so on.

    Args:
        frozen: the prompt.
        layer: layer of the latent.
        position: position where the latent fires.
        latent: its number.
        options: how far to follow.
        name: of its SAE, if two read the layer's attention.

    Raises:
        UsageError: no SAE reads the layer's attention, or the latent does not fire there.
    """
    options = options or RecursionOptions()
    (top,) = direct_feature_attribution(frozen, layer, position, latent, name)
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
    """The large contributions to one latent, from its strongest sources."""
    assert node.latent is not None
    assert node.position is not None
    at = node.layer, node.position, node.latent
    (direct,) = direct_feature_attribution(frozen, *at, node.name)
    sources: Sequence[int] = (
        direct.by_source.abs().topk(min(options.n_sources, frozen.n_pos)).indices.tolist()
    )
    found = []
    for source in sources:
        given = source_attribution(frozen, *at, source, node.name)
        pairs = zip(given.nodes, given.by_node.tolist(), strict=True)
        found += [(n, w) for n, w in pairs if abs(w) >= options.threshold * abs(node.value)]
    return sorted(found, key=lambda pair: -abs(pair[1]))


def _is_attention(frozen: Frozen, node: Node) -> bool:
    places = {active.name: active.place for active in frozen.actives}
    return node.kind == "latent" and places[node.name].kind in OF_ATTENTION

"""Influence of nodes and edges on the target, pruning by it, and two scores of a graph.

The definitions are circuit-tracer's (version 0.5). Each node's inputs are divided by the sum of
their magnitudes, which gives shares; a node's influence is the sum, over all paths to the target,
of the product of shares. Inputs that cancel each other therefore look important, unlike in a
graph's signed attributions. Biases have no influence: circuit-tracer has no nodes for them.
Latents that a graph left out, and MLPs as they are, count like errors; circuit-tracer leaves the
first out of its sums and has no second.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64, Int64
from pydantic import Field

from saelab.analysis.circuits.graph_data import AttributionGraph, propagated
from saelab.config import Config

TOKENS = ("embedding", "position")
CONSTANT = ("bias",)
UNEXPLAINED = ("error", "mlp", "heads", "rest")
"""Kinds of nodes for computation that no latent explains."""


class PruneOptions(Config):
    """Which part of a graph to keep."""

    node_threshold: float = Field(default=0.8, ge=0, le=1)
    """Keep the most influential nodes up to this share of all influence (circuit-tracer: 0.8)."""
    edge_threshold: float = Field(default=0.98, ge=0, le=1)
    """Then keep the most influential edges up to this share (circuit-tracer: 0.98)."""


@dataclass(frozen=True)
class GraphScores:
    """The shares of a graph that latents explain, in [0, 1]; 1 without errors or MLP leaves.

    Attributes:
        replacement: influence of tokens, divided by that of tokens and unexplained leaves.
        completeness: explained share of inputs, averaged over all nodes weighted by influence;
            leaves have no inputs and count 1.
        error_influence: errors' share of the influence of all leaves except biases.
        mlp_influence: the same share of MLP outputs without a transcoder.
    """

    replacement: float
    completeness: float
    error_influence: float
    mlp_influence: float


@dataclass(frozen=True)
class Influence:
    """Each node's and edge's share of all paths to the target, by magnitudes; 1 for the target."""

    nodes: Float64[np.ndarray, " node"]
    edges: Float64[np.ndarray, " edge"]

    @classmethod
    def of(cls, graph: AttributionGraph) -> "Influence":
        """The influence of every node and edge of a graph."""
        shares = edge_shares(graph)
        nodes = propagated(graph, shares)
        return cls(nodes, nodes[graph.target] * shares)


def edge_shares(graph: AttributionGraph) -> Float64[np.ndarray, " edge"]:
    """Each edge's magnitude, divided by the sum over all edges into the same node but biases'."""
    size = np.abs(graph.weight) * ~_of_kind(graph, CONSTANT)[graph.source]
    total = np.bincount(graph.target, size, len(graph.nodes))
    return size / np.maximum(total[graph.target], 1e-300)


def node_influence(graph: AttributionGraph) -> Float64[np.ndarray, " node"]:
    """For each node, the sum over paths to the target of products of shares; 1 for the target."""
    return propagated(graph, edge_shares(graph))


def cumulative_influence(graph: AttributionGraph) -> Float64[np.ndarray, " node"]:
    """The share of all influence of a node together with all more influential ones.

    A viewer's pruning slider keeps the nodes below some share.
    """
    influence = _upstream(node_influence(graph))
    order = np.argsort(-influence, kind="stable")
    out = np.empty(len(influence))
    out[order] = np.cumsum(influence[order]) / max(1e-300, influence.sum())
    return out


def prune(graph: AttributionGraph, options: PruneOptions | None = None) -> AttributionGraph:
    """The most influential nodes and edges, with what was dropped in `counts`.

    Embeddings and the target are kept. Then latents without outputs or inputs are removed,
    repeatedly. Weights do not change, so inputs of a pruned graph no longer sum to values.
    """
    influence = Influence.of(graph)
    return part_of(graph, *kept_parts(graph, options, influence), influence)


def kept_parts(
    graph: AttributionGraph,
    options: PruneOptions | None = None,
    influence: Influence | None = None,
) -> tuple[Bool[np.ndarray, " node"], Bool[np.ndarray, " edge"]]:
    """The nodes and edges that pruning keeps.

    Edges are ranked by their influence in the graph of the kept nodes alone. Giving the whole
    graph's `influence` saves time if it is pruned more than once.
    """
    options = options or PruneOptions()
    influence = influence or Influence.of(graph)
    kept = _most(_upstream(influence.nodes), options.node_threshold)
    kept |= _of_kind(graph, ("target", "embedding"))
    inside = np.flatnonzero(kept[graph.source] & kept[graph.target])
    ends = {"source": graph.source[inside], "target": graph.target[inside]}
    part = Influence.of(replace(graph, weight=graph.weight[inside], **ends))
    chosen = inside[_most(part.edges, options.edge_threshold)]
    return _without_loose_ends(graph, kept, chosen)


def part_of(
    graph: AttributionGraph,
    kept: Bool[np.ndarray, " node"],
    edges: Bool[np.ndarray, " edge"],
    known: Influence | None = None,
) -> AttributionGraph:
    """The subgraph of these nodes and edges, with what was dropped in `counts`.

    Giving the whole graph's influence saves time.
    """
    influence = node_influence(graph) if known is None else known.nodes
    number = kept.cumsum() - 1
    lost = influence[~kept].sum() / influence[:-1].sum() if len(influence) > 1 else 0.0
    return replace(
        graph,
        nodes=tuple(node for node, keep in zip(graph.nodes, kept, strict=True) if keep),
        source=number[graph.source[edges]],
        target=number[graph.target[edges]],
        weight=graph.weight[edges],
        counts=graph.counts
        | {
            "pruned_nodes": int((~kept).sum()),
            "pruned_edges": int((~edges).sum()),
            "pruned_influence": float(lost),
        },
    )


def graph_scores(graph: AttributionGraph) -> GraphScores:
    """Replacement and completeness of an unpruned graph, as `compute_graph_scores` has them."""
    influence = node_influence(graph)
    by_kind = {
        kinds: float(influence[_of_kind(graph, kinds)].sum())
        for kinds in (TOKENS, UNEXPLAINED, ("error",), ("mlp",))
    }
    known, unknown = by_kind[TOKENS], by_kind[UNEXPLAINED]
    leaves = max(1e-300, known + unknown)
    missing = np.bincount(
        graph.target,
        edge_shares(graph) * _of_kind(graph, UNEXPLAINED)[graph.source],
        len(graph.nodes),
    )
    explained = float(((1 - missing) * influence).sum() / influence.sum())
    return GraphScores(
        known / leaves, explained, by_kind[("error",)] / leaves, by_kind[("mlp",)] / leaves
    )


def _of_kind(graph: AttributionGraph, kinds: tuple[str, ...]) -> Bool[np.ndarray, " node"]:
    return np.array([node.kind in kinds for node in graph.nodes])


def _upstream(influence: Float64[np.ndarray, " node"]) -> Float64[np.ndarray, " node"]:
    """Without the target's own: what is ranked is all that leads to it."""
    out = influence.copy()
    out[-1] = 0.0
    return out


def _most(amount: Float64[np.ndarray, " n"], share: float) -> Bool[np.ndarray, " n"]:
    """The fewest entries that together have this share of the sum; at a share of 1 all of them."""
    if share == 1.0:
        return np.ones(len(amount), dtype=bool)
    order = np.argsort(-amount, kind="stable")
    before = np.cumsum(amount[order]) - amount[order]
    kept = np.zeros(len(amount), dtype=bool)
    kept[order] = before < share * amount.sum()
    return kept & (amount > 0)


def _without_loose_ends(
    graph: AttributionGraph, kept: Bool[np.ndarray, " node"], edges: Int64[np.ndarray, " chosen"]
) -> tuple[Bool[np.ndarray, " node"], Bool[np.ndarray, " edge"]]:
    """Repeatedly drop nodes without a path to the target, and latents without inputs."""
    n = len(graph.nodes)
    latent, fixed = _of_kind(graph, ("latent",)), _of_kind(graph, ("target", "embedding"))
    while True:
        source, target = graph.source[edges], graph.target[edges]
        leads = np.bincount(source, minlength=n) > 0
        fed = np.bincount(target, minlength=n) > 0
        still = kept & (fixed | (leads & (fed | ~latent)))
        edges = edges[still[source] & still[target]]
        if (still == kept).all():
            mask = np.zeros(len(graph.weight), dtype=bool)
            mask[edges] = True
            return kept, mask
        kept = still

"""A graph of direct effects as plain arrays. A reader of finished graphs needs no torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64

from saelab import drawing
from saelab.analysis.circuits.nodes import Node
from saelab.sites import Place


@dataclass(frozen=True)
class AttributionGraph:
    """A graph of direct effects, all edges from lower to higher node numbers.

    Attributes:
        nodes: nodes in order of depth, the target last.
        source, target, weight: ends and weight of each edge; weights are in the target node's
            units.
        tokens: the prompt as text.
        counts: numbers of latents active, in the graph and left out, and the same for edges.
        facts: the target (`target`, its `value` and `position`, the prompt's `token_ids`), each
            SAE's place and the positions where it is not applied (`saes`: `left_out`); JSON-ready,
            callers add to it.
    """

    nodes: tuple[Node, ...]
    source: Int64[np.ndarray, " edge"]
    target: Int64[np.ndarray, " edge"]
    weight: Float64[np.ndarray, " edge"]
    tokens: tuple[str, ...]
    counts: dict[str, int | float]
    facts: dict[str, Any]

    @property
    def values(self) -> Float64[np.ndarray, " node"]:
        """Each node's value."""
        return np.array([node.value for node in self.nodes])

    @property
    def not_applied(self) -> dict[str, list[int]]:
        """The positions where each SAE is not applied, by name; empty for an older file."""
        return {n: sae.get("left_out", []) for n, sae in self.facts.get("saes", {}).items()}

    def left_out(self, node: Node) -> bool:
        """Whether no latent could be at the node's place, so that the node is no finding.

        Its SAE is not applied there, and the error node carries the whole activation. Nodes without
        an SAE count if none of the graph's SAEs is applied there.
        """
        places = self.not_applied
        if node.position is None or node.kind == "target" or not places:
            return False
        own = [places[node.name]] if node.kind in ("latent", "error") else places.values()
        return all(node.position in where for where in own)

    @property
    def runs(self) -> list[str]:
        """The runs of the graph's SAEs, by name; one for all layers of a cross-layer transcoder."""
        saes = self.facts.get("saes", {})
        return list(dict.fromkeys(sae.get("run", name) for name, sae in saes.items()))

    def in_run(self, node: Node) -> tuple[str, int | None]:
        """The run whose SAE a latent is of, and its number there.

        They are the node's own, unless its SAE is a layer of a cross-layer transcoder.
        """
        sae = self.facts.get("saes", {}).get(node.name, {})
        latent = node.latent
        return sae.get("run", node.name), None if latent is None else latent + sae.get("first", 0)

    def rank(self, node: Node) -> int:
        """The node's place in the order of computation; for nodes at a position but the target."""
        sae = self.facts.get("saes", {}).get(node.name)
        if node.kind in ("latent", "error") and sae is not None:
            return Place(sae["layer"], sae["kind"]).depth
        kind = node.kind if node.kind in ("mlp", "heads") else "residual"
        return Place(node.layer, kind).depth

    def row_sums(self) -> Float64[np.ndarray, " node"]:
        """The sum of each node's incoming edges: for latents and the target their value."""
        return np.bincount(self.target, self.weight, len(self.nodes))

    def attributions(self) -> Float64[np.ndarray, " node"]:
        """Each node's contribution to the target over all paths, in the target's units.

        A node passes on what it receives in proportion to its inputs; the leaves' contributions sum
        to the target's value.
        """
        whole = self.values
        # In the target's own units from the start: its value may be zero, a latent's is not.
        whole[-1] = 1.0
        given = propagated(self, self.weight / whole[self.target])
        given[-1] = self.nodes[-1].value
        return given

    figure = drawing.figure


def propagated(graph: AttributionGraph, share: Float[np.ndarray, " edge"]) -> np.ndarray:
    """1 at the target, passed down the edges by their shares and summed at every node."""
    order = np.argsort(graph.target, kind="stable")
    source, share = graph.source[order], share[order]
    starts = np.searchsorted(graph.target[order], np.arange(len(graph.nodes) + 1)).tolist()
    total = np.zeros(len(graph.nodes))
    total[-1] = 1.0
    # Sources come before their ends, so a node has all that it gets before it passes it on.
    for end in reversed(range(len(total))):
        into = slice(starts[end], starts[end + 1])
        np.add.at(total, source[into], total[end] * share[into])
    return total

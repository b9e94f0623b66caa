"""A graph of direct effects as plain arrays. A reader of finished graphs needs no torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64

from saelab import drawing
from saelab.analysis.circuits.nodes import Node


@dataclass(frozen=True)
class AttributionGraph:
    """A graph of direct effects, all edges from lower to higher node numbers.

    Attributes:
        nodes: by depth, the target last.
        source, target, weight: of each edge; weights are in the target node's units.
        tokens: the prompt as text.
        counts: how many latents were active, are in the graph, and were left out; edges likewise.
        facts: what was explained (`target`, its `value` and `position`, the prompt's `token_ids`)
            and where each SAE stands and at which positions it is not applied (`saes`: `left_out`);
            JSON-ready, callers add to it.
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
        """Each node's own value."""
        return np.array([node.value for node in self.nodes])

    @property
    def not_applied(self) -> dict[str, list[int]]:
        """By SAE, the positions where it is not applied; of an older file, none."""
        return {n: sae.get("left_out", []) for n, sae in self.facts.get("saes", {}).items()}

    def left_out(self, node: Node) -> bool:
        """Whether a node stands where no latent could be, so that it is no finding.

        Its SAE is not applied there, and the error node carries the whole activation; for what
        belongs to no SAE: none of the graph's is.
        """
        places = self.not_applied
        if node.position is None or node.kind == "target" or not places:
            return False
        own = [places[node.name]] if node.kind in ("latent", "error") else places.values()
        return all(node.position in where for where in own)

    def row_sums(self) -> Float64[np.ndarray, " node"]:
        """What flows into each node: its value, for latents and the target."""
        return np.bincount(self.target, self.weight, len(self.nodes))

    def attributions(self) -> Float64[np.ndarray, " node"]:
        """What each node gives the target over all paths of the graph, in the target's units.

        A node passes on what it gets in proportion to its inputs; those of the leaves sum to the
        target's value.
        """
        whole = self.values
        # In the target's own units from the start: its value may be zero, a latent's is not.
        whole[-1] = 1.0
        given = propagated(self, self.weight / whole[self.target])
        given[-1] = self.nodes[-1].value
        return given

    figure = drawing.figure


def propagated(graph: AttributionGraph, share: Float[np.ndarray, " edge"]) -> np.ndarray:
    """1 at the target, carried down the edges by their shares and added up at every node."""
    n = len(graph.nodes)
    now = np.zeros(n)
    now[-1] = 1.0
    total = now.copy()
    while now.any():
        now = np.bincount(graph.source, now[graph.target] * share, n)
        total += now
    return total

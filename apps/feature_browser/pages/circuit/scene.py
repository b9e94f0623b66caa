"""A graph with the reader's view of it, which all parts of the Circuit page draw from."""

from dataclasses import dataclass

from feature_browser.pages.circuit.address import CircuitAddress
from feature_browser.pages.circuit.graphs import Kept, OpenGraph
from feature_browser.pages.circuit.groups import Groups
from feature_browser.pages.circuit.node_names import NodeNames


@dataclass(frozen=True)
class GraphScene:
    """A graph, as the address describes it.

    Attributes:
        pins: the pinned nodes.
        lost: pins of the address that are not in the graph.
        groups: its supernodes.
    """

    names: NodeNames
    kept: Kept
    address: CircuitAddress
    pins: list[int]
    lost: int = 0
    groups: Groups | None = None

    @property
    def found(self) -> OpenGraph:
        """The graph."""
        return self.names.found

    @property
    def picked(self) -> int | None:
        """The node that was picked."""
        return self.found.numbers.get(self.address.node)

"""What the address says on the Circuit page."""

from dataclasses import dataclass

from feature_browser.data.address import AbstractAddress, is_number, parameter


def is_percent(text: str) -> bool:
    """Whether a parameter is a whole number from 0 to 100."""
    return is_number(text, 3) and int(text) <= 100


@dataclass(frozen=True, kw_only=True)
class CircuitAddress(AbstractAddress):
    """A graph, and how it is looked at.

    Attributes:
        graph: the name of its file; the list of them if empty.
        node: the node that was picked.
        pins: the nodes that were pinned, see `graphs.pins_of`.
        nodes, edges: per cent of the influence that is shown.
    """

    view = "circuit"
    graph: str = parameter("")
    node: str = parameter("")
    pins: str = parameter("")
    nodes: str = parameter("80", is_percent)
    edges: str = parameter("98", is_percent)

"""The address of the Circuit page."""

from dataclasses import dataclass

from feature_browser.data.address import AbstractAddress, is_number, parameter


def is_percent(text: str) -> bool:
    """Whether a parameter is a whole number from 0 to 100."""
    return is_number(text, 3) and int(text) <= 100


@dataclass(frozen=True, kw_only=True)
class CircuitAddress(AbstractAddress):
    """A graph, and the view of it.

    Attributes:
        graph: the name of its file; if empty, the page lists all graphs.
        node: the picked node.
        pins: the pinned nodes, see `graphs.pins_of`.
        nodes, edges: percentage of the influence that is shown.
    """

    view = "circuit"
    graph: str = parameter("")
    node: str = parameter("")
    pins: str = parameter("")
    nodes: str = parameter("80", is_percent)
    edges: str = parameter("98", is_percent)

"""The address of the Circuit page."""

import re
from dataclasses import dataclass

from feature_browser.data.address import AbstractAddress, is_number, one_of, parameter


def is_percent(text: str) -> bool:
    """Whether a parameter is a whole number from 0 to 100."""
    return is_number(text, 3) and int(text) <= 100


def is_range(text: str) -> bool:
    """Whether a parameter is two whole numbers like 2-5; the first may be -1."""
    return _RANGE.fullmatch(text) is not None


def range_of(text: str) -> tuple[int, int] | None:
    """The numbers of a range, the smaller one first; None for an empty parameter."""
    found = _RANGE.fullmatch(text)
    return (
        None if found is None else (min(*map(int, found.groups())), max(*map(int, found.groups())))
    )


_RANGE = re.compile(r"(-1|\d{1,6})-(-1|\d{1,6})", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class CircuitAddress(AbstractAddress):
    """A graph, and the view of it; or what is to be explained.

    Attributes:
        part: "explain" for the form that asks for a new graph.
        prompt, chat, target, against, wanted, saes, limit: the form's fields, see `request`.
        example: in place of a prompt: a context of the run's examples, and a position in it.
        job: the job that computes the graph.
        beside: the name of a second graph of the same run, drawn beside the first.
        layers, positions: the blocks and tokens that are shown, as 2-5; all if empty.
        named: "no" leaves the names off the nodes.
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
    layers: str = parameter("", is_range)
    positions: str = parameter("", is_range)
    named: str = one_of("yes", "no")
    beside: str = parameter("")
    part: str = one_of("", "explain")
    prompt: str = parameter("")
    chat: str = parameter("")
    target: str = parameter("")
    against: str = parameter("")
    wanted: str = parameter("")
    saes: str = parameter("")
    limit: str = parameter("4096", lambda text: is_number(text, 5) and int(text) > 0)
    example: str = parameter("", is_range)
    job: str = parameter("")

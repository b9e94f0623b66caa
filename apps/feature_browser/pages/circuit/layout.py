"""The positions of a graph's nodes: tokens from left to right, computation upwards."""

from collections.abc import Sequence
from dataclasses import dataclass

from feature_browser.pages.circuit.graphs import Kept, OpenGraph
from saelab.analysis.circuits.nodes import Node
from saelab.console import visible

LEFT, RIGHT, TOP, FOOT, GAP = 124, 8, 8, 26, 12
WIDE = 840
"""Width of the picture's card in a window of 1280 pixels; longer prompts scroll."""
ROOMY = 90
"""Up to this number of nodes, latents have their numbers or names beside them."""
SLOTS = {"named": (96.0, 52.0), "roomy": (34.0, 30.0), "dense": (15.0, 15.0)}
"""Width and height of a node's place."""
SIDE_BY_SIDE = {"named": (6, 5, 4, 3), "roomy": (8, 6, 5, 4, 3, 2), "dense": (12, 8, 6, 4, 3, 2)}
"""How many nodes of a token and row stand beside each other, at most; the first that fits."""
STRETCH = {"named": 1.33, "roomy": 1.0, "dense": 1.0}
"""How wide a picture may be, in cards; a wider one is scrolled, or zoomed out."""
EVERYWHERE = -1
"""The column of biases, which belong to all positions."""


@dataclass(frozen=True)
class GraphLayout:
    """The frame of the picture.

    Attributes:
        width, height: size of the whole picture.
        places: x and y by node number.
        rows: row names at the left, with their heights.
        columns: column names at the bottom, with place and width; the first may be that of biases.
        style: named, if there is room for names at the nodes; roomy, for numbers; else dense.
    """

    width: float
    height: float
    places: dict[int, tuple[float, float]]
    rows: list[tuple[str, float]]
    columns: list[tuple[str, float, float]]
    style: str


def lay_out(found: OpenGraph, kept: Kept, *, named: bool = False) -> GraphLayout:
    """A position for every kept node, with room for names if they are wanted and few enough."""
    numbers = kept.nodes.nonzero()[0].tolist()
    nodes = found.graph.nodes
    style = "dense" if not has_room(len(numbers)) else "named" if named else "roomy"
    slot = SLOTS[style]
    rows = row_names(found, [nodes[n] for n in numbers])
    cells: dict[tuple[int, int], list[int]] = {}
    for number in sorted(numbers, key=lambda n: (nodes[n].kind != "latent", -found.influence[n])):
        node = nodes[number]
        column = EVERYWHERE if node.position is None else node.position
        cells.setdefault((rows.index(row_name(node)), column), []).append(number)
    slots = {at: _slot(nodes[members[0]], style) for at, members in cells.items()}
    columns = _fitting_columns(found.graph.tokens, cells, slots, style)
    places, heights, y = {}, [], TOP + 8.0
    for row in reversed(range(len(rows))):
        lines = 1
        for column, (_, x, wide) in columns.items():
            members = cells.get((row, column), [])
            across_slot = slots.get((row, column), slot[0])
            per_line = max(1, int(wide // across_slot))
            lines = max(lines, -(-len(members) // per_line))
            for place, number in enumerate(members):
                line, across = divmod(place, per_line)
                in_line = min(per_line, len(members) - line * per_line)
                dx = (across - (in_line - 1) / 2) * across_slot
                places[number] = (x + wide / 2 + dx, y + slot[1] * (line + 0.5))
        heights.append((rows[row], y + slot[1] * lines / 2))
        y += slot[1] * lines + GAP
    last = max(x + wide for _, x, wide in columns.values())
    return GraphLayout(last + RIGHT, y + FOOT, places, heights, list(columns.values()), style)


def has_room(n_nodes: int) -> bool:
    """Whether so many nodes can be drawn with their names."""
    return n_nodes <= ROOMY


def share_with_names(found: OpenGraph, most: int, edges: int) -> int:
    """The largest percentage of the influence, `most` or less by tens, with room for names."""
    shares = range(most, 0, -10)
    few = (n for n in shares if has_room(int(found.pruned(n, edges).nodes.sum())))
    return next(few, min(most, 10))


def _slot(first: Node, style: str) -> float:
    """The width of a node's place in a cell; its latents, which have names, come first in it."""
    named = style == "named" and first.kind != "latent"
    return SLOTS["roomy" if named else style][0]


def row_name(node: Node) -> str:
    """The name of a node's row."""
    if node.kind in ("target", "bias", "rest"):
        return {"target": "target", "bias": "biases", "rest": "biases"}[node.kind]
    return "embeddings" if node.kind in ("embedding", "position") else node.name


def row_names(found: OpenGraph, nodes: Sequence[Node]) -> list[str]:
    """The rows from bottom to top, in the order of computation."""

    def depth(node: Node) -> float:
        fixed = {"target": float("inf"), "bias": -2.0, "rest": -2.0}
        fixed |= {"embedding": -1.0, "position": -1.0}
        if node.kind in fixed:
            return fixed[node.kind]
        return float(found.graph.rank(node))

    return [name for _, name in sorted({(depth(node), row_name(node)) for node in nodes})]


def _fitting_columns(
    tokens: Sequence[str],
    cells: dict[tuple[int, int], list[int]],
    slots: dict[tuple[int, int], float],
    style: str,
) -> dict[int, tuple[str, float, float]]:
    """The columns with as many nodes side by side as fit."""
    columns: dict[int, tuple[str, float, float]] = {}
    for most in SIDE_BY_SIDE[style]:
        wides = {at: slots[at] * min(most, len(members)) for at, members in cells.items()}
        columns = _columns(tokens, wides)
        if max(x + wide for _, x, wide in columns.values()) <= STRETCH[style] * WIDE - RIGHT + 1:
            break
    return columns


def _columns(
    tokens: Sequence[str], wides: dict[tuple[int, int], float]
) -> dict[int, tuple[str, float, float]]:
    """By position: the token, the start of its column, and its width."""
    fullest = dict.fromkeys(range(len(tokens)), 0.0)
    for (_, column), wide in wides.items():
        fullest[column] = max(fullest.get(column, 0.0), wide)
    needed = {}
    for column in sorted(fullest):
        text = "all tokens" if column == EVERYWHERE else visible(tokens[column]).strip() or "␣"
        words = min(72.0 if fullest[column] else 36.0, 7.0 * len(text) + 12)
        needed[column] = (text, max(words, fullest[column] + 8, 26.0))
    total = sum(wide for _, wide in needed.values())
    spare = max(0.0, WIDE - LEFT - RIGHT - total)
    columns, x = {}, float(LEFT)
    for column, (text, least) in needed.items():
        wide = least * (1 + spare / total)
        columns[column] = (text, x, wide)
        x += wide
    return columns

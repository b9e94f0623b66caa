"""The supernodes of a graph as a picture: one node per group, and the flow between them."""

import numpy as np

from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import count, flow_text
from feature_browser.pages.circuit.graphs import OpenGraph
from feature_browser.pages.circuit.layout import row_name, row_names

WIDE, BOX, TALL, STEP = 840, 172, 36, 74
MOST_GROUPS = 12
LEAST_SHARE = 0.02
"""Share of the largest flow; weaker flows are only in the table."""


def supernode_picture(found: OpenGraph, groups: dict[str, list[int]], table: np.ndarray) -> Html:
    """The first groups, in the order of computation upwards; `table` is that of `flow_table`."""
    names = list(groups)[:MOST_GROUPS]
    places = _places(found, [groups[name] for name in names])
    target = len(table) - 1
    numbers = [*range(len(names)), target]
    largest = max((abs(table[i, j]) for i in numbers for j in numbers if i != j), default=0.0)
    flows = [
        (i, j)
        for i in numbers[:-1]
        for j in numbers
        if i != j and abs(table[i, j]) > LEAST_SHARE * largest
    ]
    where = {**dict(enumerate(places[:-1])), target: places[-1]}
    edges = joined(_flow(float(table[i, j]), where[i], where[j], largest) for i, j in flows)
    boxes = joined(
        _box(
            where[i],
            label,
            f"{nodes_text(len(groups[label]))} · {flow_text(table[i, target])} directly",
        )
        for i, label in enumerate(names)
    )
    high = max(y for _, y in places) + TALL / 2 + 6
    left_out = len(groups) - len(names)
    more = html('<p class="sub">The first {n} are drawn.</p>', n=len(names)) if left_out else EMPTY
    return html(
        '<svg class="supernodes" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">{edges}'
        "{boxes}{goal}</svg>{more}",
        w=WIDE, h=f"{high:.0f}", edges=edges, boxes=boxes, more=more,
        label=f"{count(len(names))} supernodes and {count(len(flows))} flows between them and the "
        "target; the table below lists them",
        goal=_box(
            places[-1],
            str(found.graph.facts.get("target", "target")),
            f"target · {flow_text(found.graph.nodes[found.target].value)}",
        ),
    )  # fmt: skip


def nodes_text(n: int) -> str:
    """How many nodes, in words: 1 node, 12 nodes."""
    return f"{count(n)} node" if n == 1 else f"{count(n)} nodes"


def _places(found: OpenGraph, groups: list[list[int]]) -> list[tuple[float, float]]:
    """The centre of each group's box, each in its own row, and at last the target's."""
    nodes, tokens = found.graph.nodes, max(1, len(found.graph.tokens) - 1)
    rows = row_names(found, nodes)
    depth = [float(np.mean([rows.index(row_name(nodes[n])) for n in group])) for group in groups]
    order = np.argsort(np.argsort(depth, kind="stable"), kind="stable").tolist()
    room = WIDE - BOX - 4

    def across(group: list[int]) -> float:
        positions = [p for n in group if (p := nodes[n].position) is not None]
        share = float(np.mean(positions)) / tokens if positions else 0.0
        return BOX / 2 + 2 + share * room

    top = TALL / 2 + 4
    places = [
        (across(group), top + STEP * (len(groups) - rank))
        for group, rank in zip(groups, order, strict=True)
    ]
    return [*places, (across([found.target]), top)]


def _box(place: tuple[float, float], label: str, note: str) -> Html:
    x, y = place
    short = label if len(label) <= 24 else f"{label[:23]}…"
    return html(
        '<g data-tip="{label}"><rect class="group" x="{left}" y="{top}" width="{w}" height="{h}" '
        'rx="7"/><text class="name" x="{x}" y="{a}" text-anchor="middle">{short}</text>'
        '<text x="{x}" y="{b}" text-anchor="middle">{note}</text></g>',
        label=label, short=short, note=note, x=f"{x:.1f}", w=BOX, h=TALL,
        left=f"{x - BOX / 2:.1f}", top=f"{y - TALL / 2:.1f}", a=f"{y - 2:.1f}", b=f"{y + 12:.1f}",
    )  # fmt: skip


def _flow(value: float, start: tuple[float, float], end: tuple[float, float], top: float) -> Html:
    """A line between boxes, with the flow along it."""
    (x1, y1), (x2, y2) = start, end
    up = -1 if y2 < y1 else 1
    a, b = y1 + up * TALL / 2, y2 - up * TALL / 2
    middle = (a + b) / 2
    return html(
        '<path class="edge {sign}" style="--w:{w}" d="M{x1} {a}C{x1} {m} {x2} {m} {x2} {b}"/>'
        '<text class="flow" x="{x}" y="{y}" text-anchor="middle">{value}</text>',
        sign="neg" if value < 0 else "pos", w=f"{(abs(value) / top) ** 0.5:.3f}",
        x1=f"{x1:.1f}", x2=f"{x2:.1f}", a=f"{a:.1f}", b=f"{b:.1f}", m=f"{middle:.1f}",
        x=f"{(x1 + x2) / 2:.1f}", y=f"{middle + 4:.1f}", value=flow_text(value),
    )  # fmt: skip

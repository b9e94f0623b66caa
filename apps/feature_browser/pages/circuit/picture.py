"""The picture of a graph, as SVG: marks that are links, edges by sign and strength."""

import textwrap
from collections.abc import Sequence

import numpy as np

from feature_browser.draw.markup import Html, html, joined
from feature_browser.draw.names import without_middle
from feature_browser.draw.numbers import MINUS, count
from feature_browser.pages.circuit.address import CircuitAddress
from feature_browser.pages.circuit.graphs import MOST_NODES, Kept, OpenGraph
from feature_browser.pages.circuit.layout import GraphLayout, lay_out
from feature_browser.pages.circuit.node_names import NodeNames
from feature_browser.pages.circuit.scene import GraphScene
from saelab.analysis.circuits.nodes import Node
from saelab.analysis.fires_on import PREFIX
from saelab.console import visible

MOST_EDGES = 500
LONGEST_LINE = 17
"""Characters of a name on a line below its node."""
MOST_LINES = 3
ZOOMS = {
    "in": ("+", "Zoom in"),
    "out": (MINUS, "Zoom out"),
    "fit": ("whole", "Show the whole picture"),
    "one": ("1:1", "Original size"),
}


KINDS = {
    "stream": "latent of the residual stream",
    "heads": "latent of attention heads",
    "mlp": "latent of an MLP",
    "target": "what is explained",
    "token": "token embedding",
    "place": "position embedding",
    "error": "error: what an SAE misses",
    "whole": "MLP or head as it is, no SAE",
    "bias": "bias, or all latents left out",
}
"""What each kind of mark stands for, in the legend's words. Hollow: not explained by latents."""
READS = {"residual": "stream", "heads": "heads", "attention": "heads", "mlp": "mlp"}


def mark_kind(node: Node, reads: str) -> str:
    """Which of KINDS a node is drawn as; `reads` is what its SAE reads, for latents."""
    if node.kind == "latent":
        return READS.get(reads, "stream")
    leaves = {"embedding": "token", "position": "place", "mlp": "whole", "heads": "whole"}
    return leaves.get(node.kind, "bias" if node.kind in ("bias", "rest") else node.kind)


def shape(kind: str, x: float, y: float, r: float) -> Html:
    """The mark of a kind around a point."""
    if kind == "stream":
        return html(
            '<circle class="k-stream" cx="{x}" cy="{y}" r="{r}"/>',
            x=f"{x:.1f}",
            y=f"{y:.1f}",
            r=f"{r:.1f}",
        )
    return html('<path class="k-{kind}" d="{path}"/>', kind=kind, path=_path(kind, x, y, r))


def _path(kind: str, x: float, y: float, r: float) -> str:
    if kind == "heads":
        r *= 1.2
        return f"M{x:.1f} {y - r:.1f}l{r:.1f} {r:.1f}l{-r:.1f} {r:.1f}l{-r:.1f} {-r:.1f}z"
    if kind in ("mlp", "whole"):
        r *= 0.88
        return f"M{x - r:.1f} {y - r:.1f}h{2 * r:.1f}v{2 * r:.1f}h{-2 * r:.1f}z"
    if kind == "error":
        r *= 0.8
        return (
            f"M{x - r:.1f} {y - r:.1f}l{2 * r:.1f} {2 * r:.1f}"
            f"M{x - r:.1f} {y + r:.1f}l{2 * r:.1f} {-2 * r:.1f}"
        )
    if kind == "target":
        half, top = 0.5 * r, 0.87 * r
        return (
            f"M{x - r:.1f} {y:.1f}l{half:.1f} {-top:.1f}h{r:.1f}l{half:.1f} {top:.1f}"
            f"l{-half:.1f} {top:.1f}h{-r:.1f}z"
        )
    down = -1 if kind == "bias" else 1
    return f"M{x - r:.1f} {y + 0.8 * r * down:.1f}h{2 * r:.1f}l{-r:.1f} {-1.7 * r * down:.1f}z"


def legend(kinds: set[str]) -> Html:
    """The marks that occur, with their meaning."""
    marks = joined(
        html(
            '<span><svg class="key" viewBox="0 0 16 16" aria-hidden="true">{mark}</svg>{text}'
            "</span>",
            mark=shape(kind, 8, 8, 5.5),
            text=text,
        )
        for kind, text in KINDS.items()
        if kind in kinds
    )
    lines = html(
        '<span><svg class="key wide" viewBox="0 0 30 16" aria-hidden="true"><path class="edge pos" '
        'd="M2 8h26"/></svg>adds</span><span><svg class="key wide" viewBox="0 0 30 16" '
        'aria-hidden="true"><path class="edge neg" d="M2 8h26"/></svg>takes away</span>'
    )
    return html('<p class="legend">{marks}{lines}</p>', marks=marks, lines=lines)


def picture(scene: GraphScene) -> Html:
    """The kept part of the graph, with buttons to zoom and a legend."""
    return joined([zoom_buttons(), svg_of(scene), legend_of([scene])])


def legend_of(scenes: Sequence[GraphScene]) -> Html:
    """The legend of the marks that the pictures have."""
    drawn = {
        mark_kind(scene.found.graph.nodes[n], scene.found.reads(scene.found.graph.nodes[n]))
        for scene in scenes
        for n in np.flatnonzero(scene.kept.nodes)
    }
    return legend(drawn)


def zoom_buttons() -> Html:
    """Buttons for the zoom of all pictures of the canvas."""
    buttons = joined(
        html('<button data-zoom="{by}" aria-label="{t}">{s}</button>', by=by, t=title, s=sign)
        for by, (sign, title) in ZOOMS.items()
    )
    return html(
        '<p class="zoom" role="group" aria-label="Zoom">{buttons}<span>Ctrl + wheel zooms, '
        "dragging moves</span></p>",
        buttons=buttons,
    )


def svg_of(scene: GraphScene) -> Html:
    """The kept part of the graph alone."""
    names, found, kept, address = scene.names, scene.found, scene.kept, scene.address
    shown = (found.graph.nodes[n] for n in np.flatnonzero(kept.nodes))
    named = address.named == "yes" and any(names.title(node) for node in shown)
    layout = lay_out(found, kept, named=named)
    picked = found.numbers.get(address.node)
    edges = drawn_edges(found, kept, picked)
    svg = html(
        '<svg class="graph {style}{focus}" viewBox="0 0 {w} {h}" style="--wide:{w}px" role="group" '
        'aria-label="{label}">{frame}<g class="edges">{edges}</g>{marks}</svg>',
        style=layout.style,
        focus=" focus" if picked is not None else "",
        w=f"{layout.width:.0f}",
        h=f"{layout.height:.0f}",
        label=f"Graph of {len(layout.places)} nodes and {len(edges)} edges; the table below lists "
        "the nodes",
        frame=_frame(layout),
        edges=joined(_edge(found, layout, edge, picked) for edge in edges),
        marks=joined(_mark(names, layout, n, address, scene.pins) for n in layout.places),
    )
    return html(
        '<div class="wide-picture" tabindex="0" role="region" aria-label="Picture of {what}">{svg}'
        "</div>",
        svg=svg, what=found.graph.facts.get("target", "the graph"),
    )  # fmt: skip


def drawn_edges(found: OpenGraph, kept: Kept, picked: int | None = None) -> list[int]:
    """The kept edges that the picture has room for, the strongest on top."""
    edges = np.flatnonzero(kept.edges)
    order = np.argsort(-found.strength[edges], kind="stable")
    chosen = edges[order][:MOST_EDGES]
    if picked is not None:
        near = (found.graph.source[edges] == picked) | (found.graph.target[edges] == picked)
        chosen = np.union1d(chosen, edges[near])
    return chosen[np.argsort(found.strength[chosen], kind="stable")].tolist()


def _frame(layout: GraphLayout) -> Html:
    rows = joined(
        html(
            '<text class="row" x="0" y="{y}"><title>{name}</title>{short}</text>'
            '<line class="grid" x1="{a}" x2="{b}" y1="{z}" y2="{z}"/>',
            y=f"{y + 3.5:.1f}", z=f"{y:.1f}", name=name, short=without_middle(name, 19),
            a=118, b=f"{layout.width:.0f}",
        )
        for name, y in layout.rows
    )  # fmt: skip
    columns = joined(
        html(
            '<text class="token" x="{x}" y="{y}" text-anchor="middle"><title>{name}</title>{short}'
            "</text>",
            x=f"{x + wide / 2:.1f}", y=f"{layout.height - 8:.1f}", name=name,
            short=_short(name, max(2, int(wide / 7))),
        )
        for name, x, wide in layout.columns
    )  # fmt: skip
    return html("{rows}{columns}", rows=rows, columns=columns)


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _edge(found: OpenGraph, layout: GraphLayout, edge: int, picked: int | None) -> Html:
    source, target = int(found.graph.source[edge]), int(found.graph.target[edge])
    (x1, y1), (x2, y2) = layout.places[source], layout.places[target]
    middle = (y1 + y2) / 2
    size = float(np.sqrt(min(1.0, max(0.0, found.strength[edge]))))
    near = picked is not None and picked in (source, target)
    return html(
        '<path class="edge {sign}{near}" data-s="{s}" data-t="{t}" style="--w:{w}" '
        'd="M{x1} {y1}C{x1} {m} {x2} {m} {x2} {y2}"/>',
        sign="neg" if found.graph.weight[edge] < 0 else "pos",
        near=" near" if near else "",
        s=source, t=target, w=f"{size:.3f}", m=f"{middle:.1f}",
        x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}",
    )  # fmt: skip


def _mark(
    names: NodeNames, layout: GraphLayout, number: int, address: CircuitAddress, pins: list[int]
) -> Html:
    found = names.found
    node, (x, y) = found.graph.nodes[number], layout.places[number]
    size = float(np.sqrt(min(1.0, found.influence[number])))
    radius = 3.2 + 3.6 * size if layout.style == "dense" else 4.0 + 7.0 * size
    picked = found.ids[number] == address.node
    lines = _lines(names, node, layout.style)
    text = joined(
        html(
            '<text x="{x}" y="{y}" text-anchor="middle">{line}</text>',
            x=f"{x:.1f}", y=f"{y + radius + 9 * (i + 1):.1f}", line=line,
        )
        for i, line in enumerate(lines)
    )  # fmt: skip
    rings = [
        html(
            '<circle class="{name}" cx="{x}" cy="{y}" r="{r}"/>',
            name=name, x=f"{x:.1f}", y=f"{y:.1f}", r=f"{radius + more:.1f}",
        )
        for name, on, more in (("pin", number in pins, 3.0), ("picked", picked, 5.5))
        if on
    ]  # fmt: skip
    # The mark and its number are one target for the pointer.
    hit = html(
        '<rect class="hit" x="{x}" y="{y}" width="{w}" height="{h}"/>',
        x=f"{x - radius - 2:.1f}", y=f"{y - radius - 2:.1f}", w=f"{2 * radius + 4:.1f}",
        h=f"{2 * radius + 4 + 9 * len(lines):.1f}",
    )  # fmt: skip
    # Hundreds of tab stops would hinder keyboard users; the table has the same links.
    return html(
        '<a href="{href}" class="node" tabindex="-1" data-n="{n}" data-k="{k}" data-tip="{tip}" '
        'aria-label="{label}">{rings}{shape}{text}</a>',
        href=address.to(node="" if picked else found.ids[number]).href,
        n=number, k=names.what(node), tip=names.tip(number), rings=joined([hit, *rings]), text=text,
        label=f"{names.what(node)}, {visible(found.token(node)).strip() or 'all tokens'}",
        shape=shape(mark_kind(node, found.reads(node)), x, y, radius),
    )  # fmt: skip


def _lines(names: NodeNames, node: Node, style: str) -> list[str]:
    """What is written below a latent's mark: its number, or its name in MOST_LINES."""
    if node.kind != "latent" or style == "dense":
        return []
    name = names.title(node).removeprefix(PREFIX) if style == "named" else ""
    if not name:
        return [str(node.latent)]
    lines = textwrap.wrap(name, LONGEST_LINE, break_long_words=True)
    last = MOST_LINES - 1
    return [*lines[:last], _short(" ".join(lines[last:]), LONGEST_LINE)][: len(lines)]


def hidden_text(found: OpenGraph, kept: Kept) -> str:
    """What the filters hide, and what is too much to draw."""
    text = f"hidden by filter: {count(kept.hidden_nodes)} nodes, {count(kept.hidden_edges)} edges"
    if int(kept.nodes.sum()) >= MOST_NODES:
        text += f" · at most the {count(MOST_NODES)} most influential nodes are drawn"
    beyond = int(kept.edges.sum()) - len(drawn_edges(found, kept))
    if beyond > 0:
        text += f" · the {count(beyond)} weakest of the rest are not drawn"
    return text

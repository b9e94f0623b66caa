"""Pictures of circuits."""

from collections.abc import Mapping, Sequence
from html import escape
from math import sqrt
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from saelab.analysis.circuits.graph_data import AttributionGraph
from saelab.analysis.circuits.influence import edge_shares, node_influence
from saelab.analysis.circuits.nodes import Node
from saelab.figures.style import NEUTRAL, Palette, dressed, word

N_EDGES = 300
SPREAD = 0.36
"""Nodes of one row and token are spread by up to this many tokens to each side."""
WIDTHS = (0.5, 1.2, 2.2, 3.6)


def circuit_figure(graph: AttributionGraph, palette: Palette = NEUTRAL) -> go.Figure:
    """The graph: tokens from left to right, the order of computation from bottom to top.

    A node's area is its influence, its colour the sign of its effect on the target. The 300 edges
    with the largest shares are drawn. Biases, and latents left out by a budget, are at the left.
    """
    rows = _rows(graph)
    x, y = _placed(graph, rows)
    figure = go.Figure([*_edges(graph, x, y, palette), _nodes(graph, x, y, palette)])
    words = [word(token) for token in graph.tokens]
    figure.update_xaxes(
        tickvals=list(range(len(words))), ticktext=words, range=[-1.6, len(words) - 0.4]
    )
    figure.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=[escape(row) for row in rows], showgrid=True
    )
    name = f"{graph.facts.get('target', '')} = {graph.nodes[-1].value:.3g}"
    title: dict[str, Any] = {"text": escape(name), "font": {"size": 14}}
    title["subtitle"] = {"text": escape(what_is_missing(graph)), "font": {"size": 11}}
    figure.update_layout(title=title, hovermode="closest", showlegend=False)
    figure = dressed(figure, palette, height=160 + 56 * len(rows), top=68)
    return figure.update_layout(margin={"l": 150})


def what_is_missing(graph: AttributionGraph) -> str:
    """What a budget and pruning left out of a graph, in words; empty if the graph is whole."""
    counts, parts = graph.counts, []
    if left := counts.get("latents_left_out", 0):
        parts.append(
            f"{left:,} of {counts['active_latents']:,} active latents left out ("
            f"{counts['influence_left_out']:.1%} of the influence)"
        )
    if counts.get("pruned_nodes", 0) or counts.get("pruned_edges", 0):
        parts.append(
            f"{counts['pruned_nodes']:,} nodes and {counts['pruned_edges']:,} edges pruned "
            f"({counts['pruned_influence']:.1%} of the influence)"
        )
    if hidden := len(graph.weight) - N_EDGES:
        parts += [f"{hidden:,} weaker edges not drawn"] if hidden > 0 else []
    return "; ".join(parts)


def faithfulness_figure(
    curves: Mapping[str, Sequence[tuple[int, float, float]]], palette: Palette = NEUTRAL
) -> go.Figure:
    """Faithfulness and completeness over the number of latents, one panel each.

    A curve's points are (latents, faithfulness, completeness).
    """
    figure = make_subplots(cols=len(curves), subplot_titles=list(curves), shared_yaxes=True)
    for column, points in enumerate(curves.values(), start=1):
        sizes, alone, left = (list(values) for values in zip(*points, strict=True))
        lines = (("kept alone", alone, palette.positive, "solid"),)
        for name, values, colour, dash in (*lines, ("ablated", left, palette.negative, "dot")):
            line = {"color": colour, "dash": dash, "width": 2}
            shown = {"name": name, "legendgroup": name, "showlegend": column == 1}
            figure.add_trace(go.Scatter(x=sizes, y=values, line=line, **shown), row=1, col=column)
    figure.update_xaxes(type="log", title="latents", tickvals=[5, 10, 20, 40, 80, 160, 320, 640])
    figure.update_yaxes(title="share of the effect", row=1, col=1)
    figure.update_layout(hovermode="x unified", legend={"orientation": "h", "y": 1.3})
    return dressed(figure, palette, height=300, top=72)


def _row(node: Node) -> str:
    return {
        "target": "target",
        "embedding": "embeddings",
        "position": "embeddings",
        "rest": "biases, rest",
    }.get(node.kind, "biases, rest" if node.position is None else node.name)


def _rows(graph: AttributionGraph) -> list[str]:
    """Row names from bottom to top: embeddings, then SAEs and MLPs by depth, then the target."""

    def depth(node: Node) -> float:
        if node.kind == "target":
            return float("inf")
        if node.position is None:
            return -2.0
        if node.kind in ("embedding", "position"):
            return -1.0
        return float(graph.rank(node))

    found = {(depth(node), _row(node)) for node in graph.nodes}
    return [name for _, name in sorted(found)]


def _placed(graph: AttributionGraph, rows: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the nodes; nodes of one row and token are side by side."""
    height = {name: number for number, name in enumerate(rows)}
    cells: dict[tuple[int, int], list[int]] = {}
    for number, node in enumerate(graph.nodes):
        column = -1 if node.position is None else node.position
        cells.setdefault((column, height[_row(node)]), []).append(number)
    x, y = np.zeros(len(graph.nodes)), np.zeros(len(graph.nodes))
    for (column, row), members in cells.items():
        n = len(members)
        offsets = np.linspace(-SPREAD, SPREAD, n) if n > 1 else np.zeros(1)
        x[members], y[members] = column + offsets, row
    return x, y


def _nodes(graph: AttributionGraph, x: np.ndarray, y: np.ndarray, palette: Palette) -> go.Scatter:
    influence, given = node_influence(graph), graph.attributions()
    text = [
        f"{escape(node.label())}<br>value {node.value:.3g}<br>influence {i:.3g}"
        f"<br>gives the target {a:+.3g}"
        for node, i, a in zip(graph.nodes, influence, given, strict=True)
    ]
    colours = [palette.negative if a < 0 else palette.positive for a in given]
    # Errors and whole MLPs, which nothing explains, are hollow.
    hollow = [node.kind in ("error", "mlp", "rest", "heads") for node in graph.nodes]
    shapes = ["circle-open" if h else "circle" for h in hollow]
    return go.Scatter(
        x=x.tolist(),
        y=y.tolist(),
        text=text,
        mode="markers",
        hovertemplate="%{text}<extra></extra>",
        marker={
            "size": [6 + 22 * sqrt(min(1.0, i)) for i in influence],
            "color": colours,
            "symbol": shapes,
            "opacity": 0.9,
        },
    )


def _edges(
    graph: AttributionGraph, x: np.ndarray, y: np.ndarray, palette: Palette
) -> list[go.Scatter]:
    """One trace per sign and width, since one trace per line would be slow."""
    strength = edge_shares(graph) * node_influence(graph)[graph.target]
    drawn = np.argsort(-strength)[:N_EDGES]
    if not len(drawn):
        return []
    levels = np.minimum(
        len(WIDTHS) - 1, (len(WIDTHS) * np.sqrt(strength / strength.max())).astype(int)
    )
    traces = []
    for sign, colour in ((1, palette.positive), (-1, palette.negative)):
        for level, width in enumerate(WIDTHS):
            mine = [e for e in drawn if levels[e] == level and (graph.weight[e] < 0) == (sign < 0)]
            if mine:
                ends = [(graph.source[e], graph.target[e]) for e in mine]
                traces.append(
                    go.Scatter(
                        x=[v for s, t in ends for v in (x[s], x[t], None)],
                        y=[v for s, t in ends for v in (y[s], y[t], None)],
                        mode="lines",
                        line={"color": colour, "width": width},
                        opacity=0.35,
                        hoverinfo="skip",
                    )
                )
    return traces

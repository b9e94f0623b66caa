"""Figures that notebooks and the app share (plotly): functions of records, nothing else."""

from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from saelab.analysis.records import LatentRecord


@dataclass(frozen=True)
class Palette:
    """The colours of a figure; the background is always transparent.

    Attributes:
        positive, negative: the two signs, never the only carrier of the sign.
        ink, mute, line: text, axis labels, grid.
    """

    positive: str
    negative: str
    ink: str
    mute: str
    line: str


LIGHT = Palette("#1d61a8", "#c85a14", "#1c1d1f", "#60656b", "#e4e4df")
DARK = Palette("#60a5eb", "#f09150", "#e8e8e4", "#9ba0a7", "#2a2e33")
NEUTRAL = Palette("#3d82c9", "#d9702c", "#7a7f85", "#7f848a", "rgba(128,128,128,0.25)")
"""Readable on a light and on a dark page, for a notebook whose theme nobody knows."""

FONT = "Inter, Source Sans, system-ui, sans-serif"


def latent_figure(record: LatentRecord, palette: Palette = NEUTRAL) -> go.Figure:
    """Activations and logit effects side by side."""
    figure = make_subplots(
        cols=2,
        column_widths=[0.58, 0.42],
        horizontal_spacing=0.14,
        subplot_titles=["firings per activation", "logit effect per unit of activation"],
    )
    figure.add_trace(_histogram(record, palette), row=1, col=1)
    figure.add_trace(_effects(record, palette), row=1, col=2)
    figure.update_yaxes(type="log", row=1, col=1, dtick=1)
    figure.update_yaxes(**_token_axis(record), row=1, col=2)
    title = f"latent {record.latent} · fires on {record.n_fired:,} of {record.n_tokens:,} tokens"
    figure.update_layout(title={"text": title, "font": {"size": 14}})
    figure.update_annotations(font={"size": 12, "color": palette.mute})
    return _dressed(figure, palette, height=360, top=64)


def activation_histogram(record: LatentRecord, palette: Palette = NEUTRAL) -> go.Figure:
    """How often each activation occurs, both signs, counts on a log scale."""
    figure = go.Figure(_histogram(record, palette))
    figure.update_yaxes(type="log", title="firings", dtick=1)
    figure.update_xaxes(title="activation")
    return _dressed(figure, palette, height=260)


def logit_effects_figure(record: LatentRecord, palette: Palette = NEUTRAL) -> go.Figure:
    """The tokens the latent raises and lowers most; empty for sites without a direct path."""
    figure = go.Figure(_effects(record, palette))
    figure.update_yaxes(**_token_axis(record))
    figure.update_xaxes(title="logit effect per unit of activation")
    return _dressed(figure, palette, height=420)


def training_figure(metrics: list[dict[str, Any]], palette: Palette = NEUTRAL) -> go.Figure:
    """FVU (left, log scale) and dead latents (right) over tokens seen."""
    # Arrays: Plotly looks at every element of a list.
    tokens = np.array([line["tokens"] for line in metrics])
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    curves = (
        ("fvu", "FVU", palette.positive, "solid", False),
        ("dead", "dead latents", palette.negative, "dot", True),
    )
    for key, name, colour, dash, secondary in curves:
        line = {"color": colour, "dash": dash, "width": 2}
        values = np.array([entry[key] for entry in metrics])
        curve = go.Scatter(x=tokens, y=values, name=name, mode="lines", line=line)
        figure.add_trace(curve, secondary_y=secondary)
    figure.update_xaxes(title="tokens")
    ticks = [m * 10.0**power for power in range(-5, 3) for m in (1, 2, 5)]
    figure.update_yaxes(title="FVU", type="log", tickvals=ticks, secondary_y=False)
    right = {"title": "dead latents", "rangemode": "tozero", "tickmode": "auto", "showgrid": False}
    figure.update_yaxes(**right, secondary_y=True)
    figure.update_layout(hovermode="x unified", legend={"orientation": "h", "y": 1.12})
    return _dressed(figure, palette, height=340, top=36)


def recovery_figure(features: list[dict[str, Any]], palette: Palette = NEUTRAL) -> go.Figure:
    """Each known feature: F1 of a linear probe against F1 of the best latent.

    On the diagonal one latent finds the feature as well as a probe of all the activations does.
    """
    hover = [
        f"{escape(f['label'].replace('_', ' '))}<br>best latent {f['latent']}: F1 {f['f1']:.2f}"
        f"<br>linear probe: F1 {f['probe_f1']:.2f}, AUROC {f['probe_auroc']:.2f}"
        for f in features
    ]
    colours = [palette.negative if f["sign"] < 0 else palette.positive for f in features]
    shapes = ["diamond" if f["sign"] < 0 else "circle" for f in features]
    points = go.Scatter(
        x=[f["probe_f1"] for f in features],
        y=[f["f1"] for f in features],
        text=hover,
        mode="markers",
        hovertemplate="%{text}<extra></extra>",
        marker={"color": colours, "symbol": shapes, "size": 10, "opacity": 0.85},
    )
    figure = go.Figure(points)
    diagonal = {"color": palette.mute, "width": 1, "dash": "dot"}
    figure.add_shape(type="line", x0=0, y0=0, x1=1, y1=1, line=diagonal, opacity=0.4)
    figure.update_xaxes(title="F1 of a linear probe: how much is there", range=[-0.02, 1.03])
    figure.update_yaxes(title="F1 of the best latent", range=[-0.03, 1.05])
    return _dressed(figure, palette, height=360)


def _histogram(record: LatentRecord, palette: Palette) -> go.Bar:
    edges = record.histogram_edges
    centres = (edges[:-1] + edges[1:]) / 2
    used = record.histogram > 0
    return go.Bar(
        x=centres[used].tolist(),
        y=record.histogram[used].tolist(),
        width=float(edges[1] - edges[0]) * 0.86,
        marker={
            "color": [palette.negative if c < 0 else palette.positive for c in centres[used]],
            "line": {"width": 0},
        },
        hovertemplate="activation %{x:.3g}<br>%{y:,} firings<extra></extra>",
        showlegend=False,
    )


def _effects(record: LatentRecord, palette: Palette) -> go.Bar:
    rows = _rows(record)
    return go.Bar(
        x=[effect for _, effect in rows],
        # Rows are placed by number: a token may stand on both sides, and two may look alike.
        y=list(range(len(rows))),
        customdata=[_label(token) for token, _ in rows],
        orientation="h",
        marker={
            "color": [palette.negative if e < 0 else palette.positive for _, e in rows],
            "line": {"width": 0},
        },
        hovertemplate="%{customdata} %{x:+.2f}<extra></extra>",
        showlegend=False,
    )


def _rows(record: LatentRecord) -> list[tuple[str, float]]:
    return [*record.raised, *reversed(record.lowered)]


def _label(token: str) -> str:
    """A token as plotly text, which knows some HTML; escapes stand for newlines and the like."""
    return escape(repr(token)[1:-1])


def _token_axis(record: LatentRecord) -> dict[str, Any]:
    labels = [_label(token) for token, _ in _rows(record)]
    return {"autorange": "reversed", "tickvals": list(range(len(labels))), "ticktext": labels}


def _dressed(figure: go.Figure, palette: Palette, *, height: int, top: int = 12) -> go.Figure:
    figure.update_layout(
        height=height,
        margin={"l": 56, "r": 24, "t": top, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 12, "color": palette.ink},
        bargap=0.08,
        dragmode=False,
    )
    axis = {
        "gridcolor": palette.line,
        "linecolor": palette.line,
        "zerolinecolor": palette.line,
        "tickfont": {"color": palette.mute},
        "title_font": {"color": palette.mute, "size": 12},
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure

"""The look of every figure: colours, frame, and tokens as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go


@dataclass(frozen=True)
class Palette:
    """The colours of a figure; the background is always transparent.

    Attributes:
        positive, negative: colours of the two signs; a sign is never shown by colour alone.
        ink, mute, line: colours of text, axis labels, grid.
    """

    positive: str
    negative: str
    ink: str
    mute: str
    line: str


LIGHT = Palette("#1d61a8", "#c85a14", "#1c1d1f", "#60656b", "#e4e4df")
DARK = Palette("#60a5eb", "#f09150", "#e8e8e4", "#9ba0a7", "#2a2e33")
NEUTRAL = Palette("#3d82c9", "#d9702c", "#7a7f85", "#7f848a", "rgba(128,128,128,0.25)")
"""Readable on light and dark pages, for a notebook with an unknown theme."""

FONT = "Inter, Source Sans, system-ui, sans-serif"


def dressed(
    figure: go.Figure, palette: Palette, *, height: int, top: int = 12, title: str = ""
) -> go.Figure:
    """The figure in a page's colours; `height` and `top` margin in pixels, `title` plain text."""
    figure.update_layout(
        height=height,
        margin={"l": 56, "r": 24, "t": top, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 12, "color": palette.ink},
        bargap=0.08,
        dragmode=False,
    )
    if title:
        figure.update_layout(title={"text": escape(title), "font": {"size": 14}})
    axis = {
        "gridcolor": palette.line,
        "linecolor": palette.line,
        "zerolinecolor": palette.line,
        "tickfont": {"color": palette.mute},
        "title_font": {"color": palette.mute, "size": 12},
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    # Plotly makes annotations of the panels' titles.
    figure.update_annotations(font={"size": 12, "color": palette.mute})
    return figure


def word(token: str) -> str:
    """A token as plotly text, which is partly HTML; escapes replace newlines and the like."""
    return escape(repr(token)[1:-1])


def signed_bars(
    values: Sequence[float], palette: Palette, *, horizontal: bool = False, **look: object
) -> go.Bar:
    """One bar per value, at places 0, 1, ...; the two signs have two colours."""
    places, values = list(range(len(values))), list(values)
    colours = [palette.negative if value < 0 else palette.positive for value in values]
    shown = {
        "hovertemplate": "%{x:+.3g}<extra></extra>" if horizontal else "%{y:+.3g}<extra></extra>",
        "orientation": "h" if horizontal else "v",
        "marker": {"color": colours, "line": {"width": 0}},
        "showlegend": False,
    }
    x, y = (values, places) if horizontal else (places, values)
    return go.Bar(x=x, y=y, **(shown | look))


def rows_named(names: Sequence[str]) -> dict[str, Any]:
    """A vertical axis for horizontal bars, with their names (plotly text), the first on top.

    Rows are placed by number, since two may have the same name.
    """
    return {"autorange": "reversed", "tickvals": list(range(len(names))), "ticktext": list(names)}

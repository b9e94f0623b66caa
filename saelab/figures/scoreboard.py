"""Pictures of several runs' figures."""

from html import escape
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from saelab.analysis.scoreboard import in_words
from saelab.figures.style import NEUTRAL, Palette, dressed

if TYPE_CHECKING:
    from saelab.analysis.scoreboard import FigureEstimate, Tradeoff


def tradeoff_figure(found: "Tradeoff", palette: Palette = NEUTRAL) -> go.Figure:
    """A figure against L0: each run with its interval; a line joins the runs that none beats."""
    figure = go.Figure()
    front = found.front
    figure.add_scatter(
        x=[found.points[run][0].value for run in front],
        y=[found.points[run][1].value for run in front],
        name="the Pareto front",
        mode="lines",
        line={"color": palette.positive, "width": 1.5, "shape": "hv"},
        hoverinfo="skip",
    )
    for name, runs in (
        ("runs on it", front),
        ("others", [r for r in found.points if r not in front]),
    ):
        ahead = name == "runs on it"
        estimates = [found.points[run][1] for run in runs]
        figure.add_scatter(
            x=[found.points[run][0].value for run in runs],
            y=[one.value for one in estimates],
            name=name,
            text=[escape(run) for run in runs],
            mode="markers+text" if len(found.points) <= NAMED else "markers",
            textposition="top center",
            textfont={"size": 11, "color": palette.mute},
            marker={
                "size": 10,
                "symbol": "circle" if ahead else "circle-open",
                "color": palette.positive if ahead else palette.mute,
            },
            error_y=_whiskers(estimates, palette),
            hovertemplate="%{text}<br>L0 %{x:.4g}: %{y:.4g}<extra></extra>",
        )
    figure.update_xaxes(title="L0: latents active per token", type="log")
    better = "less" if found.less else "more"
    title = f"{escape(in_words(found.name))} ({better} is better)"
    figure.update_yaxes(title=title, range=_heights(found))
    figure.update_layout(legend={"orientation": "h", "y": 1.12, "x": 0})
    return dressed(figure, palette, height=380, top=36)


NAMED = 12
"""Most runs whose names are written beside their points."""


def _heights(found: "Tradeoff") -> list[float] | None:
    """From zero where all is one value: plotly would draw one unit on either side of it."""
    heights = {height for _, one in found.points.values() for height in _ends(one)}
    return sorted((0.0, 2 * heights.pop())) if len(heights) == 1 and any(heights) else None


def _whiskers(estimates: "list[FigureEstimate]", palette: Palette) -> dict[str, object]:
    ends = [_ends(one) for one in estimates]
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - e.value for (_, high), e in zip(ends, estimates, strict=True)],
        "arrayminus": [e.value - low for (low, _), e in zip(ends, estimates, strict=True)],
        "color": palette.mute,
        "thickness": 1,
    }


def _ends(one: "FigureEstimate") -> tuple[float, float]:
    """Its interval's, or the value twice."""
    low, high = (one.value if end is None else end for end in (one.low, one.high))
    return low, high

"""The picture of a training."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int
from numpy import ndarray

from saelab.figures.style import NEUTRAL, Palette, dressed

if TYPE_CHECKING:
    from saelab.training.run import Run

TITLES = {
    "loss": "loss",
    "fvu": "FVU",
    "l0": "L0, active latents per token",
    "dead": "latents silent of late",
    "lr": "learning rate",
    "tokens_per_second": "tokens per second",
}
"""What every run logs."""
LOG = {"loss", "fvu", "gradient_norm"}
AXES = {"step", "tokens"}
MOST_POINTS = 400
PANEL = 138
"""The height of a curve, in pixels."""


def run_figure(run: "Run", palette: Palette = NEUTRAL) -> go.Figure:
    """A run's training, see `training_figure`."""
    return training_figure(run.metrics(), palette)


def training_figure(lines: Sequence[Mapping[str, Any]], palette: Palette = NEUTRAL) -> go.Figure:
    """Every figure that the lines of a log have, over the tokens seen; the pointer reads all.

    Those of every run come first. Losses and FVU have a log axis where they span a decade.
    """
    tokens = _column(lines, "tokens")
    names = dict.fromkeys([*TITLES, *sorted({name for line in lines for name in line} - AXES)])
    values = {name: _column(lines, name) for name in names}
    curves = {n: y for n, y in values.items() if (np.isfinite(y) & np.isfinite(tokens)).any()}
    figure = go.Figure()
    for place, (name, y) in enumerate(curves.items()):
        known = np.flatnonzero(np.isfinite(y) & np.isfinite(tokens))
        kept = known[telling(y[known])]
        title = TITLES.get(name) or escape(name.replace("_", " "))
        axis = f"y{place + 1}" if place else "y"
        figure.add_scatter(
            x=tokens[kept],
            y=y[kept],
            yaxis=axis,
            name=title,
            mode="lines" if len(kept) > 1 else "markers",
            line={"color": palette.positive, "width": 1.6},
            hovertemplate="%{y:,.0f}" if float(y[known].max()) >= 1000 else "%{y:.3~g}",
        )
        top = 1 - place / len(curves)
        domain = [top - 0.84 / len(curves), top - 0.14 / len(curves)]
        look = {"domain": domain, "fixedrange": True, **_scale(name, y[known])}
        figure.update_layout({f"yaxis{axis[1:]}": look})
        at = {"x": 0, "y": domain[1], "xref": "paper", "yref": "paper"}
        last = float(y[known[-1]])
        said = f"{title} <b>{last:,.0f}</b>" if abs(last) >= 1000 else f"{title} <b>{last:.3g}</b>"
        figure.add_annotation(text=said, showarrow=False, yanchor="bottom", xanchor="left", **at)
    spike = {"spikethickness": 1, "spikecolor": palette.mute, "hoverformat": ".3~s"}
    figure.update_xaxes(title="tokens", tickformat="~s", anchor=f"y{max(1, len(curves))}", **spike)
    figure.update_layout(hovermode="x unified", hoversubplots="axis", showlegend=False)
    figure = dressed(figure, palette, height=70 + PANEL * len(curves))
    return figure.update_layout(dragmode="zoom", hoverlabel={"bgcolor": palette.line})


def telling(y: Float[ndarray, " step"]) -> Int[ndarray, " kept"]:
    """Which steps to draw of many: the ends, and the least and the largest of each stretch."""
    if len(y) <= MOST_POINTS:
        return np.arange(len(y))
    bounds = np.linspace(0, len(y), MOST_POINTS // 2).astype(np.int64)
    low = [a + int(y[a:b].argmin()) for a, b in pairwise(bounds)]
    high = [a + int(y[a:b].argmax()) for a, b in pairwise(bounds)]
    return np.unique([0, *low, *high, len(y) - 1])


def _column(lines: Sequence[Mapping[str, Any]], name: str) -> Float[ndarray, " step"]:
    """A logged figure; NaN where a line has no number."""
    values = (line.get(name) for line in lines)
    return np.array([v if isinstance(v, int | float) else np.nan for v in values], dtype=float)


def _scale(name: str, y: Float[ndarray, " step"]) -> dict[str, Any]:
    if name in LOG and 0 < 10 * y.min() <= y.max():
        # Plotly's own ticks between the decades have only their first digit.
        within = _ticks(y.min(), y.max()) if y.max() < 300 * y.min() else {"dtick": 1}
        return {"type": "log", **within}
    return {"rangemode": "tozero", "nticks": 5, "tickformat": "~s" if y.max() >= 1000 else ""}


def _ticks(least: float, most: float) -> dict[str, Any]:
    """1, 2 and 5 of every decade, as whole numbers: 0.05, 0.1, 0.2."""
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    values = [float(f"{first}e{power}") for power in powers for first in (1, 2, 5)]
    return {"tickvals": values, "ticktext": [f"{value:g}" for value in values]}

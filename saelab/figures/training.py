"""The picture of a training."""

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from saelab.figures.style import NEUTRAL, Palette, dressed

if TYPE_CHECKING:
    from saelab.training.run import Run


def run_figure(run: "Run", palette: Palette = NEUTRAL) -> go.Figure:
    """A run's training, see `training_figure`."""
    return training_figure(run.metrics(), palette)


def training_figure(metrics: list[dict[str, Any]], palette: Palette = NEUTRAL) -> go.Figure:
    """FVU (left, log scale) and dead latents (right) over tokens seen."""
    # Arrays, since Plotly checks every element of a list.
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
    return dressed(figure, palette, height=340, top=36)

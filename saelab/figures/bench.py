"""The picture of a training step's time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from saelab.figures.style import NEUTRAL, Palette, dressed

if TYPE_CHECKING:
    from saelab.bench.step import StepTimes


def step_figure(results: "Sequence[StepTimes]", palette: Palette = NEUTRAL) -> go.Figure:
    """One bar per step, with its parts on hover, and marks for the machine's floor and plain torch.

    Times are in milliseconds, on a logarithmic axis if they span more than a factor of ten.
    """
    labels = [f"{r.variant}<br>{r.shape.d_in}/{r.shape.d_sae}/{r.shape.k}" for r in results]
    total = [1e3 * r.seconds for r in results]
    figure = go.Figure()
    figure.add_bar(
        x=labels,
        y=total,
        name="step",
        marker={"color": palette.positive, "line": {"width": 0}},
        text=[f"{t:.3g} ms, {r.ratio:.2f} x floor" for t, r in zip(total, results, strict=True)],
        customdata=[_parts(r) for r in results],
        hovertemplate="%{x}<br>%{y:.3g} ms<br>%{customdata}<extra></extra>",
    )
    marks: dict[str, list[float | None]] = {"floor": [1e3 * r.floor for r in results]}
    marks["plain torch, dense TopK"] = [1e3 * r.dense[0] if r.dense else None for r in results]
    for (name, values), symbol in zip(marks.items(), ("line-ew", "diamond-open"), strict=True):
        if any(value is not None for value in values):
            marker = {"symbol": symbol, "size": 18, "line": {"width": 3}, "color": palette.negative}
            figure.add_scatter(x=labels, y=values, name=name, mode="markers", marker=marker)
    wide = max(total) > 10 * min(total)
    figure.update_yaxes(title="ms", type="log" if wide else "linear", rangemode="tozero")
    return dressed(figure, palette, height=460, top=48, title="One optimizer step")


def _parts(result: "StepTimes") -> str:
    return "<br>".join(f"{name} {1e3 * t:.3g} ms" for name, t in result.stages.items())

"""Pictures of what other encoders make of an SAE's dictionary."""

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from saelab.figures.style import NEUTRAL, Palette, dressed

if TYPE_CHECKING:
    from saelab.evaluation.encoder_curves import EncoderCurves

DASHES = ("solid", "dot", "dash", "longdash", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "x", "triangle-up")


def encoder_figure(found: "EncoderCurves", palette: Palette = NEUTRAL) -> go.Figure:
    """FVU against L0, both logarithmic: a curve for each encoder, a star for the SAE's own.

    What lies below the star has the same decoder and better codes. Pursuits have the colour of
    positive values, minimised penalties that of negative ones.
    """
    figure = go.Figure()
    pursuits = 0
    for number, (name, points) in enumerate(found.curves.items()):
        greedy = "mp" in name
        place = pursuits if greedy else number - pursuits
        pursuits += greedy
        colour = palette.positive if greedy else palette.negative
        figure.add_scatter(
            x=[point.l0 for point in points],
            y=[point.fvu for point in points],
            name=name,
            mode="lines+markers",
            line={"color": colour, "dash": DASHES[place % len(DASHES)], "width": 2},
            marker={"symbol": SYMBOLS[place % len(SYMBOLS)], "size": 8},
            hovertemplate="L0 %{x:.2f}: FVU %{y:.4f}",
        )
    figure.add_scatter(
        x=[found.own.l0],
        y=[found.own.fvu],
        name="the SAE's own encoder",
        mode="markers",
        marker={"symbol": "star", "size": 16, "color": palette.ink},
        hovertemplate="L0 %{x:.2f}: FVU %{y:.4f}",
    )
    figure.update_xaxes(title="L0: latents active per row", type="log")
    figure.update_yaxes(title="FVU", type="log")
    return dressed(figure, palette, height=420, top=24)

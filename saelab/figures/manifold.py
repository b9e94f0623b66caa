"""The picture of a bilinear latent: activations in the plane of its form, by strength."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from saelab.analysis.manifold import Manifold
from saelab.figures.style import NEUTRAL, Palette, dressed, signed_bars, word


def manifold_figure(found: Manifold, palette: Palette = NEUTRAL) -> go.Figure:
    """Unit activations in the plane of the two largest eigenvectors, and the eigenvalues.

    The colour is the form's value, positive or negative. No point lies outside the unit circle,
    and near it an activation has nothing outside the plane.
    """
    figure = make_subplots(
        cols=2,
        column_widths=[0.68, 0.32],
        horizontal_spacing=0.2,
        subplot_titles=["activations in the form's plane", "eigenvalues"],
    )
    figure.add_trace(_points(found, palette), row=1, col=1)
    figure.add_trace(signed_bars(found.values, palette), row=1, col=2)
    figure.add_shape(
        type="circle", x0=-1, y0=-1, x1=1, y1=1, line={"color": palette.line}, row=1, col=1
    )
    for axis, value in zip("xy", found.values, strict=False):
        title = f"u · eigenvector of {value:+.3g}"
        figure.update_layout({f"{axis}axis": {"title": title, "range": [-1.05, 1.05]}})
    figure.update_yaxes(scaleanchor="x", scaleratio=1, row=1, col=1)
    figure.update_xaxes(showticklabels=False, row=1, col=2)
    rest = "" if found.share > 0.999 else f" · the plane holds {found.share:.0%} of the form"
    title = f"latent {found.latent} on {found.n_rows:,} activations{rest}"
    return dressed(figure, palette, height=480, top=64, title=title)


def _points(found: Manifold, palette: Palette) -> go.Scattergl:
    # The weakest are drawn first, so that they hide no strong one.
    order = abs(found.strength).argsort()
    largest = float(abs(found.strength).max(initial=0)) or 1.0
    # In float32 the sum of both shares may exceed 1.
    opacity = (0.15 + 0.85 * abs(found.strength[order]) / largest).clip(max=1)
    scale = [[0, palette.negative], [0.5, palette.line], [1, palette.positive]]
    return go.Scattergl(
        x=found.points[order, 0].tolist(),
        y=found.points[order, 1].tolist(),
        mode="markers",
        marker={
            "color": found.strength[order].tolist(),
            "colorscale": scale,
            "cmin": -largest,
            "cmax": largest,
            "opacity": opacity.tolist(),
            "size": 5,
            "colorbar": {"title": "strength", "thickness": 12, "x": 0.62},
        },
        customdata=[word(found.tokens[i]) for i in order.tolist()],
        hovertemplate="%{customdata}<br>strength %{marker.color:+.3g}<extra></extra>",
        showlegend=False,
    )

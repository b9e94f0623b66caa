"""Pictures of what a crosscoder's latents share."""

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from saelab.figures.style import NEUTRAL, Palette, dressed

if TYPE_CHECKING:
    from saelab.analysis.sharing.records import Sharing

BINS = 40
DASHES = ("solid", "dash", "dot", "dashdot")


def sharing_figure(found: "Sharing", palette: Palette = NEUTRAL) -> go.Figure:
    """How many latents have which share of their decoder norm at each site.

    With two sites it is the second's, so that 0 is the first alone, 1 the second, 0.5 both.
    """
    figure, alive = go.Figure(), found.n_fired > 0
    edges = np.linspace(0, 1, BINS + 1)
    shown = range(len(found.sites)) if len(found.sites) > 2 else (1,)
    middles = (edges[:-1] + edges[1:]) / 2
    for number, site in enumerate(shown):
        counts, _ = np.histogram(found.norm[alive, site], edges)
        figure.add_scatter(
            x=middles,
            y=counts,
            name=found.sites[site],
            mode="lines",
            line={"shape": "hvh", "width": 2, "dash": DASHES[number % len(DASHES)]},
            line_color=palette.positive,
            fill="tozeroy" if len(found.sites) == 2 else None,
            hovertemplate="%{y} latents around %{x:.2f}<extra></extra>",
        )
    title = "share of the decoder norm at the site"
    if len(found.sites) == 2:
        title = f"share of the decoder norm: 0 is {found.sites[0]} alone, 1 {found.sites[1]} alone"
    figure.update_xaxes(title=title, range=[0, 1])
    figure.update_yaxes(title="latents")
    figure.update_layout(legend={"orientation": "h", "y": 1.15})
    return dressed(figure, palette, height=260, top=40)

"""Pictures of what a crosscoder's latents share."""

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from saelab.figures.style import NEUTRAL, Palette, dressed

if TYPE_CHECKING:
    from saelab.analysis.sharing.records import Sharing

BINS = 40


def sharing_figure(found: "Sharing", palette: Palette = NEUTRAL) -> go.Figure:
    """How many latents have which share of their decoder norm at each site.

    With two sites it is the second's, so that 0 is the first alone, 1 the second, 0.5 both.
    """
    figure, alive = go.Figure(), found.n_fired > 0
    edges = np.linspace(0, 1, BINS + 1)
    shown = range(len(found.sites)) if len(found.sites) > 2 else (1,)
    for number, site in enumerate(shown):
        counts, _ = np.histogram(found.norm[alive, site], edges)
        figure.add_bar(
            x=(edges[:-1] + edges[1:]) / 2,
            y=counts,
            name=found.sites[site],
            marker={"color": palette.positive, "opacity": 1 / (1 + number), "line": {"width": 0}},
            hovertemplate="%{y} latents around %{x:.2f}<extra></extra>",
        )
    title = "share of the decoder norm at the site"
    if len(found.sites) == 2:
        title = f"share of the decoder norm: 0 is {found.sites[0]} alone, 1 {found.sites[1]} alone"
    figure.update_xaxes(title=title, range=[0, 1])
    figure.update_yaxes(title="latents")
    figure.update_layout(bargap=0.05, barmode="overlay", legend={"orientation": "h", "y": 1.15})
    return dressed(figure, palette, height=260, top=40)

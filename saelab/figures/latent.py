"""The picture of a latent."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from saelab.analysis.records import LatentRecord
from saelab.figures.style import NEUTRAL, Palette, dressed, rows_named, signed_bars, word


def latent_figure(record: LatentRecord, palette: Palette = NEUTRAL) -> go.Figure:
    """Activations, counted on a log scale, and the tokens that the latent raises and lowers most.

    The tokens are empty for sites without a direct path to the logits.
    """
    figure = make_subplots(
        cols=2,
        column_widths=[0.58, 0.42],
        horizontal_spacing=0.14,
        subplot_titles=["firings per activation", "logit effect per unit of activation"],
    )
    figure.add_trace(_histogram(record, palette), row=1, col=1)
    effects = [*record.raised, *reversed(record.lowered)]
    names = [word(token) for token, _ in effects]
    hover = "%{customdata} %{x:+.2f}<extra></extra>"
    bars = signed_bars(
        [e for _, e in effects], palette, horizontal=True, customdata=names, hovertemplate=hover
    )
    figure.add_trace(bars, row=1, col=2)
    figure.update_yaxes(type="log", row=1, col=1, dtick=1)
    figure.update_yaxes(**rows_named(names), row=1, col=2)
    title = f"latent {record.latent} · fires on {record.n_fired:,} of {record.n_tokens:,} tokens"
    return dressed(figure, palette, height=360, top=64, title=title)


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

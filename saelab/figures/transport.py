"""Pictures of transport: which latents are carried, and how much maps of each rank carry."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from saelab.figures.style import NEUTRAL, Palette, dressed, word

if TYPE_CHECKING:
    from saelab.analysis.transport.records import SiteTransport

FLOOR = -1.0
"""R² below this is drawn there: how far it is below says little."""
SYMBOLS = ("circle", "diamond", "circle-open")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def transport_figure(
    found: "SiteTransport | Sequence[SiteTransport]", palette: Palette = NEUTRAL
) -> go.Figure:
    """R² of every latent against how often it fires, and what maps of each rank carry.

    Of several pairs of sites: the distribution of the latents' R², and the maps of each pair.
    """
    many = list(found) if isinstance(found, Sequence) else [found]
    measured = [one for one in many if len(one)]
    titles = ["R² of the latents" if len(many) > 1 else "Latents", "Maps"]
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.1)
    if len(many) > 1:
        for one in measured:
            figure.add_trace(_violin(one, palette), row=1, col=1)
    else:
        for points in _points(many[0], palette):
            figure.add_trace(points, row=1, col=1)
        figure.update_xaxes(title="tokens on which the latent fires", type="log", row=1, col=1)
    figure.add_hline(y=0.5, line={"color": palette.mute, "width": 1, "dash": "dot"}, row=1, col=1)
    figure.update_yaxes(
        title=f"R² on its tokens ({FLOOR:g}: or less)", range=[FLOOR - 0.06, 1.04], row=1, col=1
    )
    for number, one in enumerate(many):
        dash = DASHES[number % len(DASHES)]
        name = "" if len(many) == 1 else f"{_short(one)}: "
        for curve in _curves(one, palette, name, dash):
            figure.add_trace(curve, row=1, col=2)
    figure.update_xaxes(title="rank of the map", type="log", row=1, col=2)
    figure.update_yaxes(title="share", range=[-0.04, 1.06], row=1, col=2)
    figure.update_layout(legend={"orientation": "h", "y": -0.22})
    return dressed(figure, palette, height=460, top=36).update_layout(margin={"b": 96})


def _points(one: "SiteTransport", palette: Palette) -> Iterator[go.Scattergl]:
    colours = (palette.positive, palette.negative, palette.mute)
    verdict = one.verdict()
    for number, name in enumerate(("carried", "computed", "undecided")):
        mine = np.flatnonzero(verdict == number)
        yield go.Scattergl(
            x=one.n_fired[mine].tolist(),
            y=np.maximum(one.best[mine], FLOOR).tolist(),
            text=[_hover(one, int(i)) for i in mine],
            customdata=mine.tolist(),
            mode="markers",
            name=f"{len(mine)} {name}",
            hovertemplate="%{text}<extra></extra>",
            marker={"color": colours[number], "symbol": SYMBOLS[number], "size": 6, "opacity": 0.6},
        )


def _hover(one: "SiteTransport", i: int) -> str:
    return (
        f"latent {i}<br>R² {one.best[i]:.3f} ({one.low[i]:.2f} to {one.high[i]:.2f})"
        f"<br>identity {one.identity[i]:.2f}, other latent {one.other[i]:.2f}"
        f"<br>fires on {one.n_fired[i]} tokens"
    )


def _violin(one: "SiteTransport", palette: Palette) -> go.Violin:
    values = one.best[~np.isnan(one.best)]
    return go.Violin(
        y=np.maximum(values, FLOOR).tolist(),
        name=_short(one),
        line={"color": palette.positive},
        box={"visible": True},
        points=False,
        spanmode="hard",
        showlegend=False,
    )


def _curves(one: "SiteTransport", palette: Palette, name: str, dash: str) -> Iterator[go.Scatter]:
    ranks = list(range(1, len(one.rho) + 1))
    r2 = one.curves["r2"][1:].tolist()
    efficient = [one.efficiency(rank) for rank in ranks]
    for title, values, colour in (
        (f"{name}R²", r2, palette.positive),
        (f"{name}efficiency", efficient, palette.mute),
    ):
        yield go.Scatter(
            x=ranks,
            y=values,
            mode="lines",
            name=title,
            line={"color": colour, "width": 2, "dash": dash},
            hovertemplate="rank %{x}: %{y:.3f}<extra>" + title + "</extra>",
        )
    spliced = [s for s in one.splices if s.name == "transported" and s.rank is not None]
    if not spliced:
        return
    ends = [((s.high or s.recovered) - s.recovered) for s in spliced]
    yield go.Scatter(
        x=[s.rank for s in spliced],
        y=[s.recovered for s in spliced],
        error_y={"type": "data", "array": ends, "color": palette.negative},
        mode="markers+lines",
        name=f"{name}CE recovered",
        marker={"symbol": "diamond", "size": 8, "color": palette.negative},
        line={"color": palette.negative, "width": 1, "dash": dash},
        hovertemplate="rank %{x}: %{y:.3f}<extra>CE recovered</extra>",
    )


def _short(one: "SiteTransport") -> str:
    """The pair as plotly text, without what both names share."""
    parts = [site.split(".") for site in (one.earlier, one.later)]
    if all(len(part) > 2 and part[0] == "blocks" for part in parts):
        kinds = [".".join(part[2:]).removeprefix("hook_") for part in parts]
        left, right = (f"{part[1]}.{kind}" for part, kind in zip(parts, kinds, strict=True))
        if kinds[0] == kinds[1]:
            left, right = parts[0][1], parts[1][1]
        return word(f"{left} → {right}")
    return word(f"{one.earlier} → {one.later}")

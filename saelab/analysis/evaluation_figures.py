"""Figures of an evaluation (plotly): functions of what `evaluation/*.json` holds."""

from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from saelab.analysis.figures import NEUTRAL, Palette, _dressed


def density_figure(density: dict[str, Any], palette: Palette = NEUTRAL) -> go.Figure:
    """How many latents fire how often, on a log10 axis; dead ones are named beside it."""
    edges, counts = density["log10_edges"], density["counts"]
    bars = go.Bar(
        x=[(low + high) / 2 for low, high in pairwise(edges)],
        y=counts,
        width=edges[1] - edges[0],
        customdata=[[10**low, 10**high] for low, high in pairwise(edges)],
        marker={"color": palette.positive, "line": {"width": 0}},
        hovertemplate="%{y} latents fire on %{customdata[0]:.2g} to %{customdata[1]:.2g}"
        " of the tokens<extra></extra>",
    )
    figure = go.Figure(bars)
    whole = [edge for edge in edges if float(edge).is_integer()]
    ticks = {"tickvals": whole, "ticktext": [f"{10**edge:g}" for edge in whole]}
    figure.update_xaxes(title="share of the tokens on which a latent fires", **ticks)
    figure.update_yaxes(title="latents")
    n_dead = density["frequency"].count(0)
    return _titled(figure, palette, f"{n_dead} of {len(density['frequency'])} latents never fire")


def l0_figure(density: dict[str, Any], palette: Palette = NEUTRAL) -> go.Figure:
    """How many tokens have how many active latents."""
    counts = density["l0_counts"]
    bars = go.Bar(
        x=list(range(len(counts))),
        y=[count / density["n_tokens"] for count in counts],
        marker={"color": palette.positive, "line": {"width": 0}},
        hovertemplate="%{x} active: %{y:.2%} of the tokens<extra></extra>",
    )
    figure = go.Figure(bars)
    figure.update_xaxes(title="active latents", rangemode="tozero")
    figure.update_yaxes(title="share of the tokens", tickformat=".0%")
    return _titled(figure, palette, f"mean L0 {density['mean_l0']:.2f}")


def description_length_figure(
    lengths: dict[str, dict[str, Any]], palette: Palette = NEUTRAL
) -> go.Figure:
    """Bits per token against FVU as codes are rounded ever finer; one curve for each named run.

    Lengths compare at equal FVU: the lower curve is the shorter description.
    """
    figure = go.Figure()
    dashes = ("solid", "dot", "dash", "longdash", "dashdot")
    for i, (name, length) in enumerate(lengths.items()):
        colour = palette.negative if i % 2 else palette.positive
        curve = length["curve"]
        figure.add_trace(
            go.Scatter(
                x=[level["fvu"] for level in curve],
                y=[level["bits"] for level in curve],
                text=[f"{level['n_bins']} values a sign" for level in curve],
                name=name,
                mode="lines+markers",
                line={"color": colour, "dash": dashes[i // 2 % len(dashes)], "width": 2},
                hovertemplate="%{text}: %{y:.1f} bits at FVU %{x:.4f}",
            )
        )
    figure.update_xaxes(title="FVU of the rounded codes", type="log")
    figure.update_yaxes(title="bits per token", rangemode="tozero")
    figure.update_layout(legend={"orientation": "h", "y": 1.12})
    return _dressed(figure, palette, height=300, top=40)


def absorption_figure(absorption: dict[str, Any], palette: Palette = NEUTRAL) -> go.Figure:
    """For each label the share that other latents say in its own latents' place."""
    tasks = sorted(absorption["tasks"], key=lambda task: task["rate"]["fraction"])
    names = [task["name"].replace("_", " ") for task in tasks]
    figure = go.Figure()
    for key, name, colour in (
        ("fraction", "in part", palette.positive),
        ("full", "fully", palette.negative),
    ):
        figure.add_trace(
            go.Bar(
                x=[task["rate"][key] for task in tasks],
                y=names,
                customdata=[task["rate"]["n_rows"] for task in tasks],
                name=name,
                orientation="h",
                marker={"color": colour, "line": {"width": 0}},
                hovertemplate=f"%{{y}}: %{{x:.1%}} absorbed {name}, %{{customdata}} tokens"
                "<extra></extra>",
            )
        )
    figure.update_xaxes(title="absorbed", tickformat=".0%", range=[0, 1])
    figure.update_layout(barmode="group", legend={"orientation": "h", "y": 1.12})
    figure = _dressed(figure, palette, height=120 + 36 * len(tasks), top=40)
    return figure.update_layout(margin={"l": 150})


def _titled(figure: go.Figure, palette: Palette, title: str) -> go.Figure:
    figure.update_layout(title={"text": title, "font": {"size": 13, "color": palette.mute}})
    return _dressed(figure, palette, height=300, top=40)

"""Pictures of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from saelab.config import UsageError
from saelab.drawing import drawn, figure
from saelab.figures.style import NEUTRAL, Palette, dressed

if TYPE_CHECKING:
    from saelab.evaluation.absorption_tasks import Absorption
    from saelab.evaluation.density import Density
    from saelab.evaluation.mdl import DescriptionLength
    from saelab.evaluation.mdl_sweep import LengthCurve
    from saelab.evaluation.recovery import RecoveryResult
    from saelab.evaluation.results import Evaluation
    from saelab.evaluation.set_results import SetEvaluation

DASHES = ("solid", "dot", "dash", "longdash", "dashdot")


def evaluation_figure(evaluation: "Evaluation", palette: Palette = NEUTRAL) -> go.Figure:
    """All figures of an evaluation that its measurements allow, two per row.

    Raises:
        UsageError: there is none.
    """
    parts = [
        figure(found, palette=palette) for found in evaluation.results.values() if drawn(found)
    ]
    if evaluation.density is not None:
        parts.insert(1, l0_figure(evaluation.density, palette))
    if not parts:
        raise UsageError("Nothing that was measured has a figure.")
    n_rows = -(-len(parts) // 2)
    layouts: list[Any] = [part.layout for part in parts]
    titles = [layout.title.text or "" for layout in layouts]
    whole = make_subplots(n_rows, 2, subplot_titles=titles, vertical_spacing=0.3 / n_rows)
    for place, (part, layout) in enumerate(zip(parts, layouts, strict=True)):
        row, col = place // 2 + 1, place % 2 + 1
        whole.add_traces(part.data, row, col)
        whole.update_xaxes(layout.xaxis.to_plotly_json(), row=row, col=col)
        whole.update_yaxes(layout.yaxis.to_plotly_json(), row=row, col=col)
        for shape in layout.shapes:
            whole.add_shape(shape, row=row, col=col)
    whole.update_layout(showlegend=False)
    return dressed(whole, palette, height=330 * n_rows, top=40)


def density_figure(density: "Density", palette: Palette = NEUTRAL) -> go.Figure:
    """The number of latents by firing rate, on a log10 axis; dead latents are counted beside it."""
    edges = density.log10_edges
    bars = go.Bar(
        x=[(low + high) / 2 for low, high in pairwise(edges)],
        y=density.counts,
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
    n_dead = density.frequency.count(0)
    title = f"{n_dead} of {len(density.frequency)} latents never fire"
    return dressed(figure, palette, height=300, top=40, title=title)


def l0_figure(density: "Density", palette: Palette = NEUTRAL) -> go.Figure:
    """The number of tokens by their number of active latents."""
    bars = go.Bar(
        x=list(range(len(density.l0_counts))),
        y=[count / density.n_tokens for count in density.l0_counts],
        marker={"color": palette.positive, "line": {"width": 0}},
        hovertemplate="%{x} active: %{y:.2%} of the tokens<extra></extra>",
    )
    figure = go.Figure(bars)
    figure.update_xaxes(title="active latents", rangemode="tozero")
    figure.update_yaxes(title="share of the tokens", tickformat=".0%")
    title = f"mean L0 {density.mean_l0:.2f}"
    return dressed(figure, palette, height=300, top=40, title=title)


def recovery_figure(
    found: "RecoveryResult | Sequence[Mapping[str, Any]]", palette: Palette = NEUTRAL
) -> go.Figure:
    """Each known feature: F1 of a linear probe against F1 of the best latent.

    On the diagonal a single latent finds the feature as well as a probe of all activations. `found`
    may also be the `features` of a run's evaluation/recovery.json.
    """
    features = found if isinstance(found, Sequence) else asdict(found)["features"]
    hover = [
        f"{escape(f['label'].replace('_', ' '))}<br>best latent {f['latent']}: F1 {f['f1']:.2f}"
        f"<br>linear probe: F1 {f['probe_f1']:.2f}, AUROC {f['probe_auroc']:.2f}"
        for f in features
    ]
    points = go.Scatter(
        x=[f["probe_f1"] for f in features],
        y=[f["f1"] for f in features],
        text=hover,
        mode="markers",
        hovertemplate="%{text}<extra></extra>",
        marker={
            "color": [palette.negative if f["sign"] < 0 else palette.positive for f in features],
            "symbol": ["diamond" if f["sign"] < 0 else "circle" for f in features],
            "size": 10,
            "opacity": 0.85,
        },
    )
    figure = go.Figure(points)
    diagonal = {"color": palette.mute, "width": 1, "dash": "dot"}
    figure.add_shape(type="line", x0=0, y0=0, x1=1, y1=1, line=diagonal, opacity=0.4)
    figure.update_xaxes(title="F1 of a linear probe: how much is there", range=[-0.02, 1.03])
    figure.update_yaxes(title="F1 of the best latent", range=[-0.03, 1.05])
    return dressed(figure, palette, height=360)


def description_length_figure(
    lengths: "DescriptionLength | Mapping[str, DescriptionLength]", palette: Palette = NEUTRAL
) -> go.Figure:
    """Bits per token against FVU for codes rounded ever finer; one curve per named run.

    Compare lengths at equal FVU: the lower curve is the shorter description.
    """
    named = lengths if isinstance(lengths, Mapping) else {"": lengths}
    figure = go.Figure()
    for i, (name, length) in enumerate(named.items()):
        colour, dash = (palette.positive, palette.negative)[i % 2], DASHES[i // 2 % len(DASHES)]
        figure.add_scatter(
            x=[level.fvu for level in length.curve],
            y=[level.bits for level in length.curve],
            text=[f"{level.n_bins} values a sign" for level in length.curve],
            name=name,
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 2},
            hovertemplate="%{text}: %{y:.1f} bits at FVU %{x:.4f}",
        )
    figure.update_xaxes(title="FVU of the rounded codes", type="log")
    figure.update_yaxes(title="bits per token", rangemode="tozero")
    figure.update_layout(legend={"orientation": "h", "y": 1.12})
    return dressed(figure, palette, height=300, top=40)


def length_curve_figure(curve: "LengthCurve", palette: Palette = NEUTRAL) -> go.Figure:
    """Bits per token against k, one line per width, with the shortest description marked.

    Variants without k stand at their L0.
    """
    figure = go.Figure()
    for i, d_sae in enumerate(sorted({run.d_sae for run in curve.runs})):
        runs = [run for run in curve.runs if run.d_sae == d_sae]
        runs.sort(key=lambda run: run.k or run.l0)
        colour, dash = (palette.positive, palette.negative)[i % 2], DASHES[i // 2 % len(DASHES)]
        figure.add_scatter(
            x=[run.k or run.l0 for run in runs],
            y=[run.bits for run in runs],
            text=[
                f"{escape(run.name)}<br>codes {run.code_bits:.1f}, rest {run.rest_bits:.1f}<br>"
                f"{run.n_bins} values a sign, FVU {run.fvu:.4f}, {run.dead} dead"
                for run in runs
            ],
            name=f"{d_sae} latents",
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 2},
            hovertemplate="%{text}<br>%{y:.1f} bits<extra></extra>",
        )
    best = curve.best
    mark = {"symbol": "circle-open", "size": 18, "color": palette.mute, "line": {"width": 3}}
    figure.add_scatter(
        x=[best.k or best.l0],
        y=[best.bits],
        name="shortest",
        mode="markers",
        marker=mark,
        hoverinfo="skip",
    )
    figure.update_xaxes(title="k", type="log")
    figure.update_yaxes(title=f"bits per token at FVU {curve.fvu:.3g}")
    figure.update_layout(legend={"orientation": "h", "y": 1.12})
    return dressed(figure, palette, height=420, top=40)


def absorption_figure(absorption: "Absorption", palette: Palette = NEUTRAL) -> go.Figure:
    """For each label, the share of its tokens on which other latents absorb its own latents."""
    tasks = sorted(absorption.tasks, key=lambda task: task.rate.fraction)
    figure = go.Figure()
    for key, name, colour in (
        ("fraction", "in part", palette.positive),
        ("full", "fully", palette.negative),
    ):
        figure.add_bar(
            x=[getattr(task.rate, key) for task in tasks],
            y=[escape(task.name.replace("_", " ")) for task in tasks],
            customdata=[task.rate.n_rows for task in tasks],
            name=name,
            orientation="h",
            marker={"color": colour, "line": {"width": 0}},
            hovertemplate=f"%{{y}}: %{{x:.1%}} absorbed {name}, %{{customdata}} tokens"
            "<extra></extra>",
        )
    figure.update_xaxes(title="absorbed", tickformat=".0%", range=[0, 1])
    figure.update_layout(barmode="group", legend={"orientation": "h", "y": 1.12})
    figure = dressed(figure, palette, height=120 + 36 * len(tasks), top=40)
    return figure.update_layout(margin={"l": 150})


def set_figure(found: "SetEvaluation", palette: Palette = NEUTRAL) -> go.Figure:
    """What each run of a set misses and costs alone, by layer; one line per part of the blocks."""
    figure = make_subplots(1, 2, subplot_titles=("FVU", "CE recovered, alone"))
    for i, part in enumerate(dict.fromkeys(member.part for member in found.members)):
        members = [member for member in found.members if member.part == part]
        line = {"color": (palette.positive, palette.negative)[i % 2], "width": 2}
        for column, name in ((1, "fvu"), (2, "ce_recovered")):
            figure.add_scatter(
                x=[member.layer for member in members],
                y=[getattr(member, name) for member in members],
                text=[f"{escape(m.name)}<br>L0 {m.l0:.1f}, {m.dead} dead" for m in members],
                name=part,
                showlegend=column == 1,
                mode="lines+markers",
                line=line,
                hovertemplate="%{text}<br>%{y:.4g}<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_xaxes(title="layer", dtick=max(1, len(found.members) // 20))
    figure.update_yaxes(rangemode="tozero", row=1, col=1)
    figure.update_yaxes(tickformat=".0%", row=1, col=2)
    figure.update_layout(legend={"orientation": "h", "y": 1.2})
    return dressed(figure, palette, height=320, top=50)

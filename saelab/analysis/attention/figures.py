"""Figures of attention latents (plotly)."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from saelab.analysis.figures import NEUTRAL, Palette, _dressed

if TYPE_CHECKING:
    from saelab.analysis.attention.dfa import DirectAttribution
    from saelab.analysis.attention.qk import ScorePairs
    from saelab.analysis.attention.studies import HeadThemes, LatentFamily, PrefixInduction


def heads_figure(shares: Sequence[float], title: str, palette: Palette = NEUTRAL) -> go.Figure:
    """One bar a head; both signs."""
    figure = go.Figure(_bars(shares, palette))
    figure.update_layout(title={"text": escape(title), "font": {"size": 14}})
    figure.update_xaxes(title="head", dtick=1)
    return _dressed(figure, palette, height=240, top=48)


def attribution_figure(
    direct: "DirectAttribution", tokens: Sequence[str], palette: Palette = NEUTRAL
) -> go.Figure:
    """Source tokens by heads as a strip, and the heads' sums above it."""
    table = direct.by_source_head.T.tolist()
    reach = max(1e-12, float(direct.by_source_head.abs().max()))
    words = _words(tokens)
    strip = go.Heatmap(
        z=table,
        x=list(range(len(words))),
        y=list(range(len(table))),
        customdata=[words] * len(table),
        zmin=-reach,
        zmax=reach,
        colorscale=[[0, palette.negative], [0.5, "rgba(128,128,128,0.08)"], [1, palette.positive]],
        hovertemplate="head %{y} from %{customdata} at %{x}: %{z:+.3f}<extra></extra>",
        colorbar={"thickness": 10},
    )
    titles = ["contribution of each head", "from each source token"]
    figure = make_subplots(rows=2, cols=1, row_heights=[0.42, 0.58], subplot_titles=titles)
    figure.add_trace(_bars(direct.by_head.tolist(), palette), row=1, col=1)
    figure.add_trace(strip, row=2, col=1)
    figure.update_xaxes(dtick=1, row=1, col=1)
    figure.update_xaxes(tickvals=list(range(len(words))), ticktext=words, row=2, col=1)
    figure.update_yaxes(title="head", dtick=1, row=2, col=1)
    title = (
        f"{direct.name} latent {direct.latent} at {direct.position}: {direct.value:.3g}, "
        f"of which {direct.constant:+.3g} constant"
    )
    figure.update_layout(title={"text": escape(title), "font": {"size": 14}})
    figure.update_annotations(font={"size": 12, "color": palette.mute})
    return _dressed(figure, palette, height=420, top=72)


def score_figure(pairs: "ScorePairs", n: int = 12, palette: Palette = NEUTRAL) -> go.Figure:
    """The pairs of query and key components with the largest parts of a score."""
    top = pairs.top(n)
    labels = [f"{escape(q.label())} with {escape(k.label())}" for q, k, _ in top]
    figure = go.Figure(_bars([part for _, _, part in top], palette, horizontal=True))
    figure.update_yaxes(autorange="reversed", tickvals=list(range(len(labels))), ticktext=labels)
    title = (
        f"head {pairs.layer}.{pairs.head}, {pairs.dest} to {pairs.source}: score "
        f"{pairs.score:.3g}, attention {pairs.pattern:.2f}"
    )
    figure.update_layout(title={"text": title, "font": {"size": 14}})
    return _dressed(figure, palette, height=90 + 26 * len(labels), top=48)


def _bars(values: Sequence[float], palette: Palette, *, horizontal: bool = False) -> go.Bar:
    places = list(range(len(values)))
    colours = [palette.negative if value < 0 else palette.positive for value in values]
    return go.Bar(
        x=list(values) if horizontal else places,
        y=places if horizontal else list(values),
        orientation="h" if horizontal else "v",
        marker={"color": colours, "line": {"width": 0}},
        hovertemplate="%{x:+.3g}<extra></extra>" if horizontal else "%{y:+.3g}<extra></extra>",
        showlegend=False,
    )


def _words(tokens: Sequence[str]) -> list[str]:
    return [escape(repr(token)[1:-1]) for token in tokens]


def prefix_figure(
    found: "PrefixInduction", least: float | int, palette: Palette = NEUTRAL
) -> go.Figure:
    """Attention behind the first copy over the prefix's length, a line a head."""
    figure = go.Figure()
    _, n_layers, n_heads = found.scores.shape
    dashes = ("solid", "dash", "dot", "dashdot")
    for layer in range(n_layers):
        for head in range(n_heads):
            line = found.scores[:, layer, head]
            if float(line.max()) >= least:
                figure.add_scatter(
                    x=list(found.lengths),
                    y=line.tolist(),
                    name=f"{layer}.{head}",
                    mode="lines+markers",
                    line={"width": 2, "dash": dashes[head % len(dashes)]},
                )
    figure.update_xaxes(title="repeated tokens, the current one included", dtick=1)
    figure.update_yaxes(title="attention behind the first copy", range=[-0.02, 1.02])
    return _dressed(figure, palette, height=340)


def families_figure(
    families: "Mapping[str, Sequence[LatentFamily]]", palette: Palette = NEUTRAL
) -> go.Figure:
    """How many latents of each SAE read locally, from afar, by induction, or from all of these."""
    figure = go.Figure()
    kinds = (("local", 1.0), ("induction", 0.7), ("long-range", 0.45), ("mixed", 0.2))
    for kind, opacity in kinds:
        counts = [sum(f.family == kind for f in found) for found in families.values()]
        figure.add_bar(
            x=counts,
            y=list(families),
            name=kind,
            orientation="h",
            marker={"color": palette.positive, "opacity": opacity, "line": {"width": 0}},
            hovertemplate="%{y} " + kind + ": %{x}<extra></extra>",
        )
    figure.update_xaxes(title="latents")
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(barmode="stack", legend={"orientation": "h", "y": 1.12})
    return _dressed(figure, palette, height=130 + 44 * len(families), top=40).update_layout(
        margin={"l": 110}
    )


def themes_figure(
    themes: "Mapping[str, Sequence[HeadThemes]]", palette: Palette = NEUTRAL
) -> go.Figure:
    """The share of its commonest theme in each head's latents; 1 is a head about one thing."""
    rows = [(f"{name} head {h.head}", h) for name, heads in themes.items() for h in heads]
    figure = go.Figure(_bars([h.share for _, h in rows], palette, horizontal=True))
    figure.update_traces(
        customdata=[escape(", ".join(f"{t} {n}" for t, n in h.themes)) for _, h in rows],
        hovertemplate="%{customdata}<extra></extra>",
        text=[escape(h.themes[0][0]) for _, h in rows],
    )
    figure.update_yaxes(
        autorange="reversed",
        tickvals=list(range(len(rows))),
        ticktext=[escape(name) for name, _ in rows],
    )
    figure.update_xaxes(title="share of the commonest theme", range=[0, 1.02])
    return _dressed(figure, palette, height=80 + 24 * len(rows)).update_layout(margin={"l": 130})

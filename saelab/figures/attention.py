"""Pictures of attention heads and of their latents."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from saelab.figures.style import NEUTRAL, Palette, dressed, rows_named, signed_bars, word

if TYPE_CHECKING:
    from saelab.analysis.attention.dfa import DirectAttribution
    from saelab.analysis.attention.heads import HeadAttribution
    from saelab.analysis.attention.qk import ScorePairs
    from saelab.analysis.attention.studies import HeadThemes, LatentFamily, PrefixInduction


def heads_figure(heads: "HeadAttribution", latent: int, palette: Palette = NEUTRAL) -> go.Figure:
    """Each head's share of one latent."""
    figure = go.Figure(signed_bars(heads.shares[latent].tolist(), palette))
    figure.update_xaxes(title="head", dtick=1)
    title = f"latent {latent}: share of its decoder row's norm"
    return dressed(figure, palette, height=240, top=48, title=title)


def attribution_figure(
    direct: "DirectAttribution", tokens: Sequence[str], palette: Palette = NEUTRAL
) -> go.Figure:
    """A strip of source tokens by heads, with their sums above; `tokens` are the prompt's."""
    table = direct.by_source_head.T.tolist()
    reach = max(1e-12, float(direct.by_source_head.abs().max()))
    words = [word(token) for token in tokens]
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
    figure.add_trace(signed_bars(direct.by_head.tolist(), palette), row=1, col=1)
    figure.add_trace(strip, row=2, col=1)
    figure.update_xaxes(dtick=1, row=1, col=1)
    figure.update_xaxes(tickvals=list(range(len(words))), ticktext=words, row=2, col=1)
    figure.update_yaxes(title="head", dtick=1, row=2, col=1)
    title = (
        f"{direct.name} latent {direct.latent} at {direct.position}: {direct.value:.3g}, "
        f"of which {direct.constant:+.3g} constant"
    )
    return dressed(figure, palette, height=420, top=72, title=title)


def score_figure(pairs: "ScorePairs", n: int = 12, palette: Palette = NEUTRAL) -> go.Figure:
    """The pairs of query and key components with the largest parts of an attention score."""
    top = pairs.top(n)
    labels = [f"{escape(q.label())} with {escape(k.label())}" for q, k, _ in top]
    figure = go.Figure(signed_bars([part for _, _, part in top], palette, horizontal=True))
    figure.update_yaxes(**rows_named(labels))
    title = (
        f"head {pairs.layer}.{pairs.head}, {pairs.dest} to {pairs.source}: score "
        f"{pairs.score:.3g}, attention {pairs.pattern:.2f}"
    )
    return dressed(figure, palette, height=90 + 26 * len(labels), top=48, title=title)


def prefix_figure(
    found: "PrefixInduction", least: float | int = 0.1, palette: Palette = NEUTRAL
) -> go.Figure:
    """Attention to the token after the first copy, over the prefix's length; one line per head."""
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
    return dressed(figure, palette, height=340)


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
    return dressed(figure, palette, height=130 + 44 * len(families), top=40).update_layout(
        margin={"l": 110}
    )


def themes_figure(
    themes: "Mapping[str, Sequence[HeadThemes]]", palette: Palette = NEUTRAL
) -> go.Figure:
    """The share of the commonest theme among each head's latents; 1 is a head with one theme."""
    rows = [(f"{name} head {h.head}", h) for name, heads in themes.items() for h in heads]
    bars = signed_bars(
        [h.share for _, h in rows],
        palette,
        horizontal=True,
        customdata=[escape(", ".join(f"{t} {n}" for t, n in h.themes)) for _, h in rows],
        hovertemplate="%{customdata}<extra></extra>",
        text=[escape(h.themes[0][0]) for _, h in rows],
    )
    figure = go.Figure(bars)
    figure.update_yaxes(**rows_named([escape(name) for name, _ in rows]))
    figure.update_xaxes(title="share of the commonest theme", range=[0, 1.02])
    return dressed(figure, palette, height=80 + 24 * len(rows)).update_layout(margin={"l": 130})

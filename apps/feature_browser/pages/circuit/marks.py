"""The marks of a graph's nodes: a shape and a colour per kind, and their meaning."""

from feature_browser.draw.markup import Html, html, joined
from saelab.analysis.circuits.nodes import Node

KINDS = {
    "stream": "latent of the residual stream",
    "heads": "latent of attention heads",
    "mlp": "latent of an MLP",
    "target": "what is explained",
    "token": "token embedding",
    "place": "position embedding",
    "error": "error: what an SAE misses",
    "whole": "MLP or head as it is, no SAE",
    "bias": "bias, or all latents left out",
}
"""The meaning of each kind of mark, for the legend. Hollow marks are not explained by latents."""
READS = {"residual": "stream", "heads": "heads", "mlp": "mlp"}


def mark_kind(node: Node, reads: str) -> str:
    """The index in KINDS of a node; `reads` is what its SAE reads, for latents."""
    if node.kind == "latent":
        return READS.get(reads, "stream")
    leaves = {"embedding": "token", "position": "place", "mlp": "whole", "heads": "whole"}
    return leaves.get(node.kind, "bias" if node.kind in ("bias", "rest") else node.kind)


def shape(kind: str, x: float, y: float, r: float) -> Html:
    """The mark of a kind around a point."""
    if kind == "stream":
        return html(
            '<circle class="k-stream" cx="{x}" cy="{y}" r="{r}"/>',
            x=f"{x:.1f}",
            y=f"{y:.1f}",
            r=f"{r:.1f}",
        )
    return html('<path class="k-{kind}" d="{path}"/>', kind=kind, path=_path(kind, x, y, r))


def _path(kind: str, x: float, y: float, r: float) -> str:
    if kind == "heads":
        r *= 1.2
        return f"M{x:.1f} {y - r:.1f}l{r:.1f} {r:.1f}l{-r:.1f} {r:.1f}l{-r:.1f} {-r:.1f}z"
    if kind in ("mlp", "whole"):
        r *= 0.88
        return f"M{x - r:.1f} {y - r:.1f}h{2 * r:.1f}v{2 * r:.1f}h{-2 * r:.1f}z"
    if kind == "error":
        r *= 0.8
        return (
            f"M{x - r:.1f} {y - r:.1f}l{2 * r:.1f} {2 * r:.1f}"
            f"M{x - r:.1f} {y + r:.1f}l{2 * r:.1f} {-2 * r:.1f}"
        )
    if kind == "target":
        half, top = 0.5 * r, 0.87 * r
        return (
            f"M{x - r:.1f} {y:.1f}l{half:.1f} {-top:.1f}h{r:.1f}l{half:.1f} {top:.1f}"
            f"l{-half:.1f} {top:.1f}h{-r:.1f}z"
        )
    down = -1 if kind == "bias" else 1
    return f"M{x - r:.1f} {y + 0.8 * r * down:.1f}h{2 * r:.1f}l{-r:.1f} {-1.7 * r * down:.1f}z"


def legend(kinds: set[str]) -> Html:
    """The marks that occur, with their meanings."""
    marks = joined(
        html(
            '<span><svg class="key" viewBox="0 0 16 16" aria-hidden="true">{mark}</svg>{text}'
            "</span>",
            mark=shape(kind, 8, 8, 5.5),
            text=text,
        )
        for kind, text in KINDS.items()
        if kind in kinds
    )
    lines = html(
        '<span><svg class="key wide" viewBox="0 0 30 16" aria-hidden="true"><path class="edge pos" '
        'd="M2 8h26"/></svg>adds</span><span><svg class="key wide" viewBox="0 0 30 16" '
        'aria-hidden="true"><path class="edge neg" d="M2 8h26"/></svg>takes away</span>'
    )
    return html('<p class="legend">{marks}{lines}</p>', marks=marks, lines=lines)

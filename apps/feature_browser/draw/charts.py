"""Small charts as SVG: how many latents lie where."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from feature_browser.draw.markup import Html, html, joined
from feature_browser.draw.numbers import count, percent, short_count
from feature_browser.draw.pictures import round_ticks, words

LEFT = 46
TALL, BARS_BASE = 190, 152


def density_chart(edges: Sequence[float], counts: Sequence[int], limit: float) -> Html:
    """Latents by the log10 of how often they fire; a dashed line at the density `limit`."""
    powers = range(math.ceil(edges[0]), math.floor(edges[-1]) + 1)
    frame = _Frame(
        wide=640,
        title="share of tokens on which a latent fires, log scale",
        ticks=[(float(power), percent(10.0**power)) for power in powers],
        limit=math.log10(limit),
        tip=lambda n, a, b: f"{count(n)} latents\nfire on {percent(10**a)} to {percent(10**b)}",
    )
    return _bars(edges, counts, frame)


def cosine_chart(edges: Sequence[float], counts: Sequence[int], limit: float) -> Html:
    """Latents by the cosine to their nearest; a dashed line at `limit`."""
    frame = _Frame(
        wide=400,
        title="cosine to the nearest",
        ticks=[(tick / 5, f"{tick / 5:g}") for tick in range(6)],
        limit=limit,
        tip=lambda n, a, b: f"{count(n)} latents\ncosine {a:.2f} to {b:.2f}",
    )
    return _bars(edges, counts, frame)


@dataclass(frozen=True)
class _Frame:
    """What stands around bars: width, title, named places, a dashed line, each bar's tooltip."""

    wide: int
    title: str
    ticks: list[tuple[float, str]]
    limit: float
    tip: Callable[[int, float, float], str]


def _bars(edges: Sequence[float], counts: Sequence[int], frame: _Frame) -> Html:
    low, high, top = edges[0], edges[-1], max(1, *counts)

    def across(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (frame.wide - LEFT - 12)

    bars = joined(
        html(
            '<rect class="pos" x="{x}" y="{y}" width="{w}" height="{h}" rx="1" fill-opacity=".8" '
            'data-tip="{tip}"/>',
            x=f"{across(a) + 0.7:.1f}", w=f"{max(0.8, across(b) - across(a) - 1.4):.1f}",
            y=f"{BARS_BASE - n / top * (BARS_BASE - 12):.1f}",
            h=f"{n / top * (BARS_BASE - 12):.1f}", tip=frame.tip(n, a, b),
        )
        for n, a, b in zip(counts, edges, edges[1:], strict=False)
        if n
    )  # fmt: skip
    marks = [words(across(x), BARS_BASE + 17, name, _anchor(x, edges)) for x, name in frame.ticks]
    limit = html(
        '<line class="limit" x1="{x}" x2="{x}" y1="8" y2="{b}"/>',
        x=f"{across(frame.limit):.1f}",
        b=BARS_BASE,
    )
    return html(
        '<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">{grid}{bars}'
        "{limit}{marks}{title}</svg>",
        w=frame.wide, h=TALL, label=f"{count(sum(counts))} latents by {frame.title}",
        grid=_count_grid(top, frame.wide), bars=bars, limit=limit, marks=joined(marks),
        title=words((LEFT + frame.wide) / 2, TALL - 4, frame.title, "middle"),
    )  # fmt: skip


def _anchor(place: float, edges: Sequence[float]) -> str:
    return "end" if place >= edges[-1] else "middle"


def _count_grid(top: int, wide: int) -> Html:
    parts = []
    for value in round_ticks(0, top, n=4):
        if value == int(value):
            y = BARS_BASE - value / top * (BARS_BASE - 12)
            parts += [_line(y, wide), words(LEFT - 6, y + 3.5, short_count(int(value)), "end")]
    return joined(parts)


def _line(y: float, right: float) -> Html:
    return html(
        '<line class="grid" x1="{a}" x2="{b}" y1="{y}" y2="{y}"/>',
        a=LEFT, b=right - 8, y=f"{y:.1f}",
    )  # fmt: skip

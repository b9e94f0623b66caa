"""Small charts as SVG: curves over training, and bars over a log axis."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from feature_browser.markup import EMPTY, Html, html, joined
from feature_browser.numbers import activation, count, percent, short_count
from feature_browser.pictures import round_ticks

WIDTH, HEIGHT, LEFT, BASE, TOP = 420, 150, 46, 124, 8
MOST_POINTS = 400
TALL, BARS_BASE = 190, 152


@dataclass(frozen=True)
class Curve:
    """One figure over the tokens seen.

    Attributes:
        log: on a log axis; only where all values are positive and span a decade.
    """

    title: str
    x: Float[ndarray, " step"]
    y: Float[ndarray, " step"]
    log: bool = False


def line_chart(curve: Curve) -> Html:
    """A curve with its last value; points that are not finite are left out."""
    known = np.isfinite(curve.x) & np.isfinite(curve.y)
    x, y = (
        values[known][:: max(1, -(-known.sum() // MOST_POINTS))] for values in (curve.x, curve.y)
    )
    if not len(x):
        return html('<p class="sub">nothing logged</p>')
    log = curve.log and bool((y > 0).all()) and float(y.max()) >= 10 * float(y.min())
    heights = np.log10(y) if log else y
    limits = _limits(heights, log=log)
    left, right = float(x.min()), float(x.max())
    across = LEFT + (x - left) / max(right - left, 1e-12) * (WIDTH - LEFT - 8)
    path = " ".join(
        f"{a:.1f},{_height(float(b), limits):.1f}" for a, b in zip(across, heights, strict=True)
    )
    dots = joined(
        html(
            '<circle class="dot" cx="{x}" cy="{y}" r="5" data-tip="{tip}"/>',
            x=f"{a:.1f}", y=f"{_height(float(b), limits):.1f}",
            tip=f"{short_count(int(tokens))} tokens\n{curve.title} {activation(float(value))}",
        )
        for a, b, tokens, value in _some(across, heights, x, y)
    )  # fmt: skip
    return html(
        '<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">{grid}'
        '<polyline points="{path}"/>{dots}{ends}</svg>',
        w=WIDTH, h=HEIGHT, path=path, dots=dots, grid=_grid(limits, log=log),
        label=f"{curve.title} from {activation(float(y[0]))} to {activation(float(y[-1]))} over "
        f"{short_count(int(right))} tokens",
        ends=joined(
            [_text(LEFT, HEIGHT - 8, short_count(int(left)), "start"),
             _text(WIDTH - 8, HEIGHT - 8, f"{short_count(int(right))} tokens", "end")]
        ),
    )  # fmt: skip


def _some(*columns: ndarray) -> list[tuple[float, ...]]:
    """At most 60 points to hover over."""
    step = max(1, -(-len(columns[0]) // 60))
    return [tuple(map(float, row)) for row in zip(*(c[::step] for c in columns), strict=True)]


def _limits(values: ndarray, *, log: bool) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if not log:
        low = min(0.0, low)
    if high - low < 1e-12:
        high = low + (abs(low) or 1.0)
    return low, high + 0.05 * (high - low)


def _height(value: float, limits: tuple[float, float]) -> float:
    low, high = limits
    return BASE - (value - low) / (high - low) * (BASE - TOP)


def _grid(limits: tuple[float, float], *, log: bool) -> Html:
    parts = []
    for value in _log_ticks(*limits) if log else round_ticks(*limits, n=3):
        y = _height(value, limits)
        name = f"{10**value:.3g}" if log else _short(value)
        parts += [_line(y), _text(LEFT - 6, y + 3.5, name, "end")]
    return joined(parts)


def _log_ticks(low: float, high: float) -> list[float]:
    """Logarithms of 1, 3, 10, 30, ... within the limits; for wide ones, of powers of ten."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    steps = (0.0, math.log10(3)) if high - low < 2.5 else (0.0,)
    ticks = [power + step for power in powers for step in steps if low <= power + step <= high]
    return ticks[:: max(1, len(ticks) // 5)]


def _short(value: float) -> str:
    whole = abs(value) >= 10 or value == 0
    return (
        short_count(round(value))
        if whole and value >= 0
        else activation(value).rstrip("0").rstrip(".")
    )


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
    marks = [_text(across(x), BARS_BASE + 17, name, _anchor(x, edges)) for x, name in frame.ticks]
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
        title=_text((LEFT + frame.wide) / 2, TALL - 4, frame.title, "middle"),
    )  # fmt: skip


def _anchor(place: float, edges: Sequence[float]) -> str:
    return "end" if place >= edges[-1] else "middle"


def _count_grid(top: int, wide: int) -> Html:
    parts = []
    for value in round_ticks(0, top, n=4):
        if value == int(value):
            y = BARS_BASE - value / top * (BARS_BASE - 12)
            parts += [_line(y, wide), _text(LEFT - 6, y + 3.5, short_count(int(value)), "end")]
    return joined(parts)


def _line(y: float, right: float = WIDTH) -> Html:
    return html(
        '<line class="grid" x1="{a}" x2="{b}" y1="{y}" y2="{y}"/>',
        a=LEFT, b=right - 8, y=f"{y:.1f}",
    )  # fmt: skip


def _text(x: float, y: float, text: str, anchor: str) -> Html:
    if not text:
        return EMPTY
    return html(
        '<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>',
        x=f"{x:.1f}", y=f"{y:.1f}", anchor=anchor, text=text,
    )  # fmt: skip

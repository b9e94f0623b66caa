"""Small charts as SVG: curves over training, and bars over a log axis."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from feature_browser.draw.markup import Html, html, joined
from feature_browser.draw.numbers import MINUS, activation, count, percent, short_count
from feature_browser.draw.pictures import round_ticks, words

SMALL, LARGE = (420, 150), (640, 210)
"""Widths and heights of line charts."""
LEFT, BELOW, TOP = 46, 26, 8
MOST_POINTS = 400
TALL, BARS_BASE = 190, 152


@dataclass(frozen=True)
class Curve:
    """One figure over the tokens seen.

    Attributes:
        log: on a log axis; only where all values are positive and span a decade.
        says: how a value is written.
    """

    title: str
    x: Float[ndarray, " step"]
    y: Float[ndarray, " step"]
    log: bool = False
    says: Callable[[float], str] = activation


CURVES = {
    "loss": "Loss",
    "fvu": "FVU",
    "l0": "L0, active latents per token",
    "dead": "Dead latents",
    "lr": "Learning rate",
    "tokens_per_second": "Tokens per second",
}
LOG = {"loss", "fvu", "gradient_norm"}
AXES = ("step", "tokens")
Columns = dict[str, Float[ndarray, " step"]]


def multiples(found: Columns, names: list[str], size: tuple[int, int] = SMALL) -> Html:
    """A chart of each of the logged figures `names`."""
    charts = joined(
        html(
            '<div class="small"><h3>{title} <b>{last}</b></h3>{chart}</div>',
            title=title(name), last=_last(found, name), chart=line_chart(_curve(found, name), size),
        )
        for name in names
    )  # fmt: skip
    return html('<div class="multiples{k}">{c}</div>', k="" if size == SMALL else " pair", c=charts)


def title(name: str) -> str:
    """What a logged figure is called."""
    return CURVES.get(name) or name.replace("_", " ").capitalize()


def logged(found: Columns) -> list[str]:
    """The figures that have a number at some step: those that every run has first."""
    names = [*CURVES, *sorted(found.keys() - CURVES.keys() - set(AXES))]
    return [name for name in names if np.isfinite(column(found, name)).any()]


def column(found: Columns, name: str) -> Float[ndarray, " step"]:
    """A logged figure; NaN where it was not logged."""
    n_steps = len(next(iter(found.values())))
    return found.get(name, np.full(n_steps, np.nan))


def _curve(found: Columns, name: str) -> Curve:
    x, y = column(found, "tokens"), column(found, name)
    return Curve(title(name), x, y, log=name in LOG, says=lambda value: _said(value, name))


def _last(found: Columns, name: str) -> str:
    value = float(column(found, name)[-1])
    return _said(value, name) if np.isfinite(value) else ""


def _said(value: float, name: str) -> str:
    if name == "lr":
        return f"{value:.2g}".replace("-", MINUS)
    if name in {"dead", "tokens_per_second"}:
        return short_count(round(value))
    return activation(value)


def line_chart(curve: Curve, size: tuple[int, int] = SMALL) -> Html:
    """A curve of `size` (width, height); points that are not finite are left out.

    What each point says stands in `data-says`, for the pointer.
    """
    known = np.isfinite(curve.x) & np.isfinite(curve.y)
    x, y = curve.x[known], curve.y[known]
    if not len(x):
        return html('<p class="sub">nothing logged</p>')
    kept = telling(y)
    x, y = x[kept], y[kept]
    log = curve.log and bool((y > 0).all()) and float(y.max()) >= 10 * float(y.min())
    heights = np.log10(y) if log else y
    limits = _limits(heights, log=log)
    # All curves of a log have one axis, also one that was first logged late.
    every = curve.x[np.isfinite(curve.x)]
    left, right = float(every.min()), float(every.max())
    (wide, high), base = size, size[1] - BELOW
    across = LEFT + (x - left) / max(right - left, 1e-12) * (wide - LEFT - 8)
    points = zip(across.tolist(), heights.tolist(), strict=True)
    says = zip(x.tolist(), y.tolist(), strict=True)
    return html(
        '<svg class="chart curve" viewBox="0 0 {w} {h}" role="img" aria-label="{label}" '
        'data-says="{says}" data-title="{title}">{grid}<polyline points="{path}"/>{ends}</svg>',
        w=wide, h=high, grid=_grid(limits, size, log=log), title=curve.title,
        path=" ".join(f"{a:.1f},{_height(value, limits, base):.1f}" for a, value in points),
        says=";".join(f"{short_count(int(tokens))}|{curve.says(value)}" for tokens, value in says),
        label=f"{curve.title} from {curve.says(float(y[0]))} to {curve.says(float(y[-1]))} over "
        f"{short_count(int(right))} tokens",
        ends=joined(
            [words(LEFT, high - 8, short_count(int(left)), "start"),
             words(wide - 8, high - 8, f"{short_count(int(right))} tokens", "end")]
        ),
    )  # fmt: skip


def telling(y: Float[ndarray, " step"]) -> Int[ndarray, " kept"]:
    """Which steps to draw of many: the ends, and the least and the largest of each stretch."""
    if len(y) <= MOST_POINTS:
        return np.arange(len(y))
    bounds = np.linspace(0, len(y), MOST_POINTS // 2).astype(np.int64)
    low = [a + int(y[a:b].argmin()) for a, b in pairwise(bounds)]
    high = [a + int(y[a:b].argmax()) for a, b in pairwise(bounds)]
    return np.unique([0, *low, *high, len(y) - 1])


def _limits(values: ndarray, *, log: bool) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if not log:
        low = min(0.0, low)
    if high - low < 1e-12:
        high = low + (abs(low) or 1.0)
    return low, high + 0.05 * (high - low)


def _height(value: float, limits: tuple[float, float], base: float) -> float:
    low, high = limits
    return base - (value - low) / (high - low) * (base - TOP)


def _grid(limits: tuple[float, float], size: tuple[int, int], *, log: bool) -> Html:
    parts = []
    for value in _log_ticks(*limits) if log else round_ticks(*limits, n=3):
        y = _height(value, limits, size[1] - BELOW)
        name = f"{10**value:.3g}" if log else _short(value)
        parts += [_line(y, size[0]), words(LEFT - 6, y + 3.5, name, "end")]
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

"""Two scores of every latent against each other, as SVG: one mark for each cell of a fine grid."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer
from numpy import ndarray

from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import count, real
from feature_browser.draw.pictures import round_ticks, words

WIDTH, HEIGHT, LEFT, BASE, TOP = 760, 400, 44, 356, 8
CELLS_X, CELLS_Y = 96, 48
"""Cells are 7 units a side: marks of neighbouring cells touch and do not hide each other."""


@dataclass(frozen=True)
class Points:
    """What is drawn.

    Attributes:
        x, y: finite scores.
        negative: which points are of negative poles; they get diamonds and the other colour.
        shown: which points the reader's filters keep; the others stay as faint marks.
    """

    x: Float[ndarray, " point"]
    y: Float[ndarray, " point"]
    negative: Bool[ndarray, " point"]
    shown: Bool[ndarray, " point"]


@dataclass(frozen=True)
class Axes:
    """The frame: what the axes say and how far they reach."""

    x_title: str
    y_title: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]


Lead = Callable[[Integer[ndarray, " member"], tuple[float, float, float, float]], tuple[str, str]]
"""From a mark's points and its cell (left, right, bottom, top) to a link and a tooltip."""


def scatter(points: Points, axes: Axes, lead: Lead, below: Html = EMPTY) -> Html:
    """The picture; every mark is a link. `below` is drawn under the marks."""
    # Filtered marks are drawn last: what the reader asked for lies on top.
    order = [(False, False), (False, True), (True, False), (True, True)]
    layers = [
        _layer(points, axes, lead, shown=shown, negative=negative) for shown, negative in order
    ]
    return html(
        '<svg class="scatter" viewBox="0 0 {w} {h}" role="group" aria-label="{label}">{grid}{below}'
        '<g aria-hidden="true">{layers}</g></svg>',
        w=WIDTH, h=HEIGHT, grid=_grid(axes), below=below, layers=joined(layers),
        label=f"{axes.y_title} against {axes.x_title}, {count(len(points.x))} points; the table "
        "below lists them",
    )  # fmt: skip


def place_x(value: float, axes: Axes) -> float:
    """Where a value of the horizontal axis lies in the picture."""
    low, high = axes.x_range
    return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - 8)


def place_y(value: float, axes: Axes) -> float:
    """Where a value of the vertical axis lies in the picture."""
    low, high = axes.y_range
    return BASE - (value - low) / (high - low) * (BASE - TOP)


def _layer(points: Points, axes: Axes, lead: Lead, *, shown: bool, negative: bool) -> Html:
    chosen = np.flatnonzero((points.shown == shown) & (points.negative == negative))
    if not len(chosen):
        return EMPTY
    columns = _cells(points.x[chosen], axes.x_range, CELLS_X)
    rows = _cells(points.y[chosen], axes.y_range, CELLS_Y)
    cells, which = np.unique(rows * CELLS_X + columns, return_inverse=True)
    order, sizes = np.argsort(which, kind="stable"), np.bincount(which)
    members = np.split(chosen[order], np.cumsum(sizes)[:-1])
    middles = (
        np.bincount(which, weights=values[chosen]) / sizes for values in (points.x, points.y)
    )
    kind = f"{'neg' if negative else 'pos'}{'' if shown else ' faint'}"
    return joined(
        _mark(found, (place_x(x, axes), place_y(y, axes)), kind, lead(found, _box(cell, axes)))
        for found, cell, x, y in zip(members, cells.tolist(), *middles, strict=True)
    )


def _cells(
    values: Float[ndarray, " n"], limits: tuple[float, float], n: int
) -> Integer[ndarray, " n"]:
    low, high = limits
    return np.clip(((values - low) / (high - low) * n).astype(np.int64), 0, n - 1)


def _mark(
    found: Integer[ndarray, " member"],
    middle: tuple[float, float],
    kind: str,
    leads: tuple[str, str],
) -> Html:
    href, tip = leads
    x, y = middle
    radius = 2.6 + 0.9 * min(3.0, math.log2(len(found)))
    shape = _diamond(x, y, radius * 1.2) if kind.startswith("neg") else _disc(x, y, radius)
    # Hundreds of stops would bury the keyboard's reader; the table has the same links.
    return html(
        '<a href="{href}" class="mark {kind}" tabindex="-1" data-tip="{tip}">{shape}</a>',
        href=href,
        kind=kind,
        tip=tip,
        shape=shape,
    )


def _box(cell: int, axes: Axes) -> tuple[float, float, float, float]:
    row, column = divmod(cell, CELLS_X)
    (left, right), (bottom, top) = axes.x_range, axes.y_range
    wide, tall = (right - left) / CELLS_X, (top - bottom) / CELLS_Y
    return (
        left + column * wide,
        left + (column + 1) * wide,
        bottom + row * tall,
        bottom + (row + 1) * tall,
    )


def _disc(x: float, y: float, radius: float) -> Html:
    return html(
        '<circle cx="{x}" cy="{y}" r="{r}"/>', x=f"{x:.1f}", y=f"{y:.1f}", r=f"{radius:.1f}"
    )


def _diamond(x: float, y: float, r: float) -> Html:
    path = f"M{x:.1f} {y - r:.1f}l{r:.1f} {r:.1f}l{-r:.1f} {r:.1f}l{-r:.1f} {-r:.1f}z"
    return html('<path d="{path}"/>', path=path)


def _grid(axes: Axes) -> Html:
    parts = []
    for value in round_ticks(*axes.y_range):
        y = f"{place_y(value, axes):.1f}"
        parts.append(_line(LEFT, WIDTH - 8, y, y))
        parts.append(words(LEFT - 7, place_y(value, axes) + 3.5, real(value, 1), "end"))
    for value in round_ticks(*axes.x_range):
        x = place_x(value, axes)
        parts.append(_line(f"{x:.1f}", f"{x:.1f}", TOP, BASE))
        parts.append(words(x, BASE + 16, real(value, 1), "middle"))
    middle = (LEFT + WIDTH) / 2
    parts.append(words(middle, HEIGHT - 6, axes.x_title, "middle"))
    turned = html(
        '<text x="{x}" y="{y}" text-anchor="middle" transform="rotate(-90 {x} {y})">{t}</text>',
        x=11, y=f"{(BASE + TOP) / 2:.0f}", t=axes.y_title,
    )  # fmt: skip
    return joined([*parts, turned])


def _line(x1: object, x2: object, y1: object, y2: object) -> Html:
    return html(
        '<line class="grid" x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"/>', x1=x1, x2=x2, y1=y1, y2=y2
    )

"""Dose and response as four small charts over the strength."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import activation, real
from feature_browser.draw.pictures import round_ticks

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BASE = 290, 150, 40, 282, 8, 122


@dataclass(frozen=True)
class Response:
    """One measure at each strength.

    Attributes:
        tips: what each point says when pointed at.
        here: the experiment's own strength, marked by a dashed line.
        log: on a log axis.
    """

    title: str
    strengths: Sequence[float]
    values: Sequence[float]
    tips: Sequence[str]
    here: float
    log: bool = False


def response_chart(response: Response) -> Html:
    """The curve with a point at each strength; what is not finite is left out."""
    known = [
        (strength, math.log10(value) if response.log else value, value, tip)
        for strength, value, tip in zip(
            response.strengths, response.values, response.tips, strict=True
        )
        if math.isfinite(value) and (value > 0 or not response.log)
    ]
    if not known:
        return html('<p class="sub">{title}: not finite at any strength</p>', title=response.title)
    x_limits = _limits([point[0] for point in known])
    y_limits = _limits([point[1] for point in known], room=0.06)
    places = [(_x(s, x_limits), _y(v, y_limits)) for s, v, *_ in known]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = joined(
        html(
            '<circle class="response" cx="{x}" cy="{y}" r="4" data-tip="{tip}"/>',
            x=f"{x:.1f}", y=f"{y:.1f}", tip=tip,
        )
        for (x, y), (*_, tip) in zip(places, known, strict=True)
    )  # fmt: skip
    first, last = known[0], known[-1]
    label = (
        f"{response.title}: {activation(first[2])} at strength {real(first[0])}, "
        f"{activation(last[2])} at {real(last[0])}"
    )
    return html(
        '<figure class="small"><h3>{title}</h3><svg class="chart" viewBox="0 0 {w} {h}" role="img" '
        'aria-label="{label}">{grid}{here}<polyline points="{path}"/>{dots}{axis}</svg></figure>',
        title=response.title, w=WIDTH, h=HEIGHT, label=label, path=path, dots=dots,
        grid=_grid(y_limits, log=response.log), here=_here(response.here, x_limits),
        axis=_axis(x_limits),
    )  # fmt: skip


def _limits(values: Sequence[float], room: float = 0.0) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    gap = room * (high - low)
    return low - gap, high + gap


def _x(value: float, limits: tuple[float, float]) -> float:
    low, high = limits
    return LEFT + (value - low) / (high - low) * (RIGHT - LEFT)


def _y(value: float, limits: tuple[float, float]) -> float:
    low, high = limits
    return BASE - (value - low) / (high - low) * (BASE - TOP)


def _grid(limits: tuple[float, float], *, log: bool) -> Html:
    ticks = round_ticks(*limits, n=3)
    if log:
        whole = range(math.ceil(limits[0]), math.floor(limits[1]) + 1)
        ticks = [float(power) for power in whole][:: max(1, len(whole) // 4)] or ticks
    return joined(
        html(
            '<line class="grid" x1="{l}" x2="{r}" y1="{y}" y2="{y}"/>'
            '<text x="{t}" y="{ty}" text-anchor="end">{name}</text>',
            l=LEFT, r=RIGHT, t=LEFT - 5, y=f"{_y(v, limits):.1f}", ty=f"{_y(v, limits) + 3.5:.1f}",
            name=_power(v) if log else f"{v:g}".replace("-", "\u2212"),
        )
        for v in ticks
    )  # fmt: skip


def _power(logarithm: float) -> str:
    value = 10**logarithm
    return f"{value:g}" if value < 1e5 else f"1e{logarithm:.0f}"


def _here(strength: float, limits: tuple[float, float]) -> Html:
    if not limits[0] <= strength <= limits[1]:
        return EMPTY
    return html(
        '<line class="limit" x1="{x}" x2="{x}" y1="{t}" y2="{b}"/>',
        x=f"{_x(strength, limits):.1f}", t=TOP, b=BASE,
    )  # fmt: skip


def _axis(limits: tuple[float, float]) -> Html:
    return joined(
        html(
            '<text x="{x}" y="{y}" text-anchor="middle">{name}</text>',
            x=f"{_x(v, limits):.1f}", y=BASE + 16, name=f"{v:g}".replace("-", "\u2212"),
        )
        for v in round_ticks(*limits, n=5)
    )  # fmt: skip

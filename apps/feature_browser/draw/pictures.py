"""Two small pictures of a latent, as SVG and HTML: its activations, and its logit effects."""

import math

import numpy as np

from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import activation, count, real, short_count, signed
from saelab.analysis.records import LatentRecord
from saelab.console import visible

WIDTH, HEIGHT, BASE, LEFT = 560, 164, 140, 30


def histogram(record: LatentRecord) -> Html:
    """Activations against their log count; the reader can brush a range."""
    used = np.flatnonzero(record.histogram)
    # Zero is always in the picture, so that position shows the sign.
    middle = int(np.searchsorted(record.histogram_edges, 0.0))
    first, last = min(int(used[0]), middle), max(int(used[-1]), middle)
    counts = record.histogram[first : last + 1]
    edges = record.histogram_edges[first : last + 2]
    low, high = float(edges[0]), float(edges[-1])
    top = math.log1p(float(counts.max()))
    bars = joined(
        _bar(int(n), float(a), float(b), (low, high, top, record.max))
        for n, a, b in zip(counts, edges, edges[1:], strict=False)
        if n
    )
    return html(
        '<svg class="histogram" viewBox="0 0 {w} {h}" data-low="{low}" data-high="{high}" '
        'data-left="{left}" data-right="{w}" role="img" aria-label="{label}">{grid}{bars}'
        '<line class="axis" x1="{left}" x2="{w}" y1="{y}" y2="{y}"/>{ticks}'
        '<rect class="brush" y="0" height="{base}" width="0"/>'
        '<line class="marker" y1="4" y2="{base}"/></svg>',
        w=WIDTH, h=HEIGHT, low=low, high=high, left=LEFT, base=BASE, y=BASE + 0.5,
        label=f"Histogram of {count(record.n_fired)} firings from {activation(low)} to "
        f"{activation(high)}; counts on a log scale",
        grid=_count_lines(int(counts.max()), top), bars=bars, ticks=_value_ticks(low, high),
    )  # fmt: skip


def _place(value: float, low: float, high: float) -> float:
    return LEFT + (value - low) / (high - low) * (WIDTH - LEFT)


def _bar(n: int, start: float, stop: float, frame: tuple[float, float, float, float]) -> Html:
    low, high, top, strongest = frame
    x, right = _place(start, low, high), _place(stop, low, high)
    height = max(1.5, math.log1p(n) / top * (BASE - 10))
    middle = (start + stop) / 2
    return html(
        '<rect class="{sign}" x="{x}" y="{y}" width="{w}" height="{h}" rx="1" fill-opacity="{o}" '
        'data-tip="{tip}"/>',
        sign="neg" if middle < 0 else "pos",
        x=f"{x + 0.6:.1f}",
        y=f"{BASE - height:.1f}",
        w=f"{max(0.8, right - x - 1.2):.1f}",
        h=f"{height:.1f}",
        o=f"{0.4 + 0.55 * min(1.0, abs(middle) / strongest):.2f}",
        tip=f"{activation(start)} to {activation(stop)}\n{count(n)} firings",
    )


def _count_lines(largest: int, top: float) -> Html:
    """A dotted line for each power of ten, with its name."""
    lines = []
    for power in range(int(math.log10(max(1, largest))) + 1):
        y = BASE - math.log1p(10**power) / top * (BASE - 10)
        line = html(
            '<line class="grid" x1="{x}" x2="{w}" y1="{y}" y2="{y}"/>',
            x=LEFT,
            w=WIDTH,
            y=f"{y:.1f}",
        )
        name = short_count(10**power) if power < 4 else f"10{_raised(power)}"
        lines += [line, words(LEFT - 5, y + 3.5, name, "end")]
    return joined(lines)


def words(x: float, y: float, text: str, anchor: str) -> Html:
    """Text in a picture; `anchor` says which end of it is at x."""
    if not text:
        return EMPTY
    return html(
        '<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>',
        x=f"{x:.1f}", y=f"{y:.1f}", anchor=anchor, text=text,
    )  # fmt: skip


def _raised(power: int) -> str:
    return "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(power))


def round_ticks(low: float, high: float, n: int = 5) -> list[float]:
    """About `n` round numbers from `low` to `high`."""
    rough = (high - low) / n
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _value_ticks(low: float, high: float) -> Html:
    ticks = round_ticks(low, high)
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9)) if len(ticks) > 1 else 2
    parts = []
    for value in ticks:
        x = _place(value, low, high)
        anchor = "start" if x < LEFT + 8 else "end" if x > WIDTH - 12 else "middle"
        shown = real(value, digits) if value else "0"
        parts.append(words(x, BASE + 17, shown, anchor))
    return joined(parts)


def logit_effects(record: LatentRecord) -> Html:
    """The tokens raised and lowered most, as two columns of bars on one scale."""
    if not record.raised:
        return html('<p class="sub">No single direct path leads from here to the logits.</p>')
    pairs = [*record.raised, *record.lowered]
    largest = max(abs(effect) for _, effect in pairs) or 1.0
    columns = joined(
        html(
            '<div><h3>{label}</h3><div role="list" aria-label="{label}">{rows}</div></div>',
            label=label,
            rows=joined(_effect(token, effect, largest) for token, effect in rows[:8]),
        )
        for label, rows in (("raised", record.raised), ("lowered", record.lowered))
    )
    return html('<div class="effects">{columns}</div>', columns=columns)


def _effect(token: str, effect: float, largest: float) -> Html:
    return html(
        '<div class="effect {sign}" role="listitem"><code title="{t}">{t}</code>'
        '<span><i style="width:{w}%"></i></span><em>{v}</em></div>',
        sign="neg" if effect < 0 else "pos",
        t=visible(token),
        w=f"{100 * abs(effect) / largest:.1f}",
        v=signed(effect),
    )

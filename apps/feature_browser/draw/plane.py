"""Unit activations in the plane of a bilinear latent's form, as SVG."""

from typing import TYPE_CHECKING

from feature_browser.draw.markup import Html, html, joined
from feature_browser.draw.numbers import real

if TYPE_CHECKING:
    from saelab.analysis.manifold import Manifold

SIZE, RADIUS = 340, 140


def plane(found: "Manifold") -> Html:
    """The points, coloured by sign and the more opaque the stronger; and what the axes are."""
    largest = float(abs(found.strength).max(initial=0)) or 1.0
    # The weakest come first, so that they hide no strong one.
    order = abs(found.strength).argsort().tolist()
    points = joined(_point(found, i, abs(float(found.strength[i])) / largest) for i in order)
    middle = SIZE / 2
    return html(
        '<svg viewBox="0 0 {size} {size}" style="max-width:{size}px" role="img" '
        'aria-label="Activations in the plane">'
        '<line class="grid" x1="{a}" x2="{b}" y1="{m}" y2="{m}"/>'
        '<line class="grid" y1="{a}" y2="{b}" x1="{m}" x2="{m}"/>'
        '<circle class="axis" cx="{m}" cy="{m}" r="{r}" fill="none"/>{points}'
        '<text x="{b}" y="{below}" text-anchor="end">{across}</text>'
        '<text x="{right}" y="{top}">{up}</text></svg>',
        size=SIZE,
        m=middle,
        a=middle - RADIUS,
        b=middle + RADIUS,
        r=RADIUS,
        points=points,
        below=middle + 13,
        right=middle + 6,
        top=middle - RADIUS - 6,
        across=_axis(found, 0),
        up=_axis(found, 1),
    )


def _axis(found: "Manifold", number: int) -> str:
    value = found.values[number] if number < len(found.values) else 0.0
    return f"eigenvalue {value:+.3g}"


def _point(found: "Manifold", i: int, share: float) -> Html:
    x, y = (float(v) for v in found.points[i])
    return html(
        '<circle class="point {sign}" cx="{x}" cy="{y}" r="2.6" fill-opacity="{o}" '
        'data-tip="{t}"/>',
        sign="neg" if found.strength[i] < 0 else "pos",
        x=f"{SIZE / 2 + RADIUS * x:.1f}",
        y=f"{SIZE / 2 - RADIUS * y:.1f}",
        o=f"{0.12 + 0.75 * share:.2f}",
        t=f"{found.tokens[i]}\nstrength {real(float(found.strength[i]), 3)}",
    )

"""Text with a latent's activation on it: shade and underline carry the strength, twice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from feature_browser.draw.markup import EMPTY, Html, html, joined, running
from feature_browser.draw.numbers import activation, count
from saelab.analysis.feature_file import FeatureFile
from saelab.analysis.records import Example, Token
from saelab.console import isolated, visible


@dataclass(frozen=True)
class TextStyle:
    """How an example is written.

    Attributes:
        strongest: the |activation| that is shaded fully.
        spaced: tokens carry their own spaces; otherwise a space is put between them.
        context: tokens on either side of the peak, or None for all of the text.
    """

    strongest: float
    spaced: bool
    context: int | None


def example_text(example: Example, style: TextStyle, file: FeatureFile) -> Html:
    """The example's tokens; what lies outside the stored window is there but greyed."""
    tokens, peak = example.tokens, example.peak
    if style.context is not None:
        first = max(0, peak - style.context)
        shown = tokens[first : peak + style.context + 1]
        return _line(shown, peak - first, style)
    before, after = surroundings(example, file)
    inner = _line(tokens, peak, style)
    gap = "" if style.spaced else " "
    parts = [_outside(before, style), inner, _outside(after, style)]
    return Html(gap.join(part for part in parts if part))


def surroundings(example: Example, file: FeatureFile) -> tuple[list[str], list[str]]:
    """The tokens of the example's text before and after its stored window."""
    line = file["corpus/tokens"][example.context]
    first, last = example.tokens[0].position, example.tokens[-1].position
    before, after = line[:first], line[last + 1 :]
    pieces = file.table.pieces
    return pieces(before[before >= 0].tolist()), pieces(after[after >= 0].tolist())


def _outside(texts: list[str], style: TextStyle) -> Html:
    if not texts:
        return Html("")
    gap = "" if style.spaced else " "
    text = running(gap.join(visible(text) for text in texts))
    return html('<span class="beyond" title="activation not stored here">{t}</span>', t=text)


def _line(tokens: list[Token], peak: int, style: TextStyle) -> Html:
    gap = Html("" if style.spaced else " ")
    parts: list[Html] = []
    for place, token in enumerate(tokens):
        parts += [_token(token, style, peak=place == peak), gap]
    return joined(parts)


def _token(token: Token, style: TextStyle, *, peak: bool) -> Html:
    if not token.activation and not peak:
        return _silent(token.text)
    strength = min(1.0, abs(token.activation) / style.strongest) if style.strongest else 0.0
    return html(
        '<span class="on {sign}{peak}" style="--a:{a}" data-v="{v}" data-tip="{tip}">{text}</span>',
        sign="neg" if token.activation < 0 else "pos",
        peak=" peak" if peak else "",
        a=f"{strength:.2f}",
        v=f"{token.activation:.5g}",
        tip=_tip(token, strength),
        text=running(visible(token.text)),
    )


@lru_cache(maxsize=1 << 16)
def _silent(text: str) -> Html:
    return running(visible(text))


def _tip(token: Token, strength: float) -> str:
    return (
        f"{isolated(visible(token.text).strip())}   {activation(token.activation)}\n"
        f"{100 * strength:.0f} % of its maximum · position {count(token.position)}"
    )


def left_out_line(tokens: Sequence[str], left_out: Mapping[str, Sequence[int]]) -> Html:
    """Each SAE with its tokens; empty where all are applied everywhere.

    SAEs that are left out at the same tokens are named together.
    """
    together: dict[tuple[int, ...], list[str]] = {}
    for name, places in left_out.items():
        if places:
            together.setdefault(tuple(places), []).append(name)
    if not together:
        return EMPTY
    parts = []
    for places, names in together.items():
        words = (f"{visible(tokens[place]).strip() or '␣'} @{place}" for place in places)
        parts.append(f"{', '.join(names)} at {', '.join(words)}")
    return html(
        '<p class="sub">Not applied, since training left such tokens out: {where}. There the error '
        "is the whole activation.</p>",
        where="; ".join(parts),
    )

"""Figures can be read on every page that they are put on."""

from typing import Any

import plotly.graph_objects as go
import pytest

from saelab.figures.style import DARK, LIGHT, Palette, dressed, word


def test_a_figure_leaves_the_background_to_the_page_and_its_title_is_text():
    look: Any = dressed(go.Figure(), LIGHT, height=100, title="a <b>bold</b> claim").layout
    assert look.paper_bgcolor == look.plot_bgcolor == "rgba(0,0,0,0)"
    assert look.title.text == "a &lt;b&gt;bold&lt;/b&gt; claim"


def test_a_token_is_shown_as_it_is():
    assert [word("<b>"), word("\n")] == ["&lt;b&gt;", "\\n"]


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio of two #rrggbb colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("palette", "page"), [(LIGHT, "#ffffff"), (DARK, "#1a1d20")])
def test_text_has_the_contrast_that_wcag_asks_for(palette: Palette, page: str):
    assert contrast(palette.ink, page) > 4.5
    assert contrast(palette.mute, page) > 4.5
    # Marks need 3:1.
    assert contrast(palette.positive, page) > 3
    assert contrast(palette.negative, page) > 3

"""The component that shows our HTML: its links change the address without a page load."""

from functools import cache
from pathlib import Path

import streamlit as st
from streamlit.components.v2 import component
from streamlit.components.v2.types import ComponentRenderer

from feature_browser.markup import Html
from feature_browser.place import Place

STATIC = Path(__file__).parent / "static"


def show(content: Html, key: str, ahead: dict[int, Html] | None = None) -> None:
    """Draw `content`. A followed link `?...` becomes the address, and the app runs again.

    `ahead` holds the pages of neighbouring latents: the browser shows them without waiting.
    """

    def follow() -> None:
        go_to(Place.at(st.session_state[key].go))

    _component()(key=key, data={"html": content, "ahead": ahead}, on_go_change=follow)


def here() -> Place:
    """The place that the address names now."""
    return Place.of(st.query_params.to_dict())


def go_to(place: Place) -> None:
    """Make `place` the address; the running or following pass of the app shows it."""
    st.query_params.from_dict(place.params())


def style_page() -> None:
    """Apply the style sheet of what Streamlit itself draws."""
    st.html(STATIC / "page.css")


@cache
def _component() -> ComponentRenderer:
    return component(
        "saelab.canvas",
        html='<div class="canvas"></div>',
        css=(STATIC / "canvas.css").read_text(),
        js=(STATIC / "canvas.js").read_text(),
    )

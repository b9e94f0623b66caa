"""The component that shows our HTML: its links change the address without a page load."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st
from streamlit.components.v2 import component
from streamlit.components.v2.types import ComponentRenderer

from feature_browser.draw.markup import Html
from feature_browser.shell.place import Place

if TYPE_CHECKING:
    import plotly.graph_objects as go

STATIC = Path(__file__).parents[1] / "static"
OnEdit = Callable[[object], None]


def show(
    content: Html, key: str, *, latent: int | None = None, on_edit: OnEdit | None = None
) -> None:
    """Draw `content`. A followed link `?...` becomes the address, and the app runs again.

    On the page of a latent the canvas turns to other latents by itself, see `routes`; `on_edit`
    is given what the reader has written there.
    """

    def follow() -> None:
        go_to(Place.at(st.session_state[key].go))

    def take() -> None:
        if on_edit is not None:
            on_edit(st.session_state[key].notes)

    data = {"html": content, "latent": latent, "noted": st.session_state.get("noted", 0)}
    _component()(key=key, data=data, on_go_change=follow, on_notes_change=take)


def plot(figure: "go.Figure", key: str) -> None:
    """Draw a figure of `saelab.figures` as a card of its own."""
    with st.container(key=f"figure-{key}"):
        st.plotly_chart(figure, theme=None, config={"displayModeBar": False}, key=key)


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
        css="".join(path.read_text() for path in sorted(STATIC.glob("canvas*.css"))),
        js="".join(path.read_text() for path in sorted(STATIC.glob("canvas*.js"))),
    )

"""The component that shows the app's HTML: links change the address without a page load."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st
from streamlit.components.v2 import component
from streamlit.components.v2.types import ComponentRenderer

from feature_browser.data.address import HOME, A, AbstractAddress, parsed
from feature_browser.draw.boxes import alone
from feature_browser.draw.markup import Html, html
from saelab.figures.style import DARK, LIGHT, Palette

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

STATIC = Path(__file__).parents[1] / "static"
OnEdit = Callable[[object], None]


def show(
    content: Html,
    key: str,
    *,
    latent: int | None = None,
    on_edit: OnEdit | None = None,
    imported: int = 0,
) -> None:
    """Draw `content`. A clicked link `?...` becomes the address, and the app runs again.

    On a latent's page the canvas shows other latents by itself, see `latent_page`; `on_edit`
    receives what the reader writes, and `imported` is the number of the import that can be taken
    back.
    """

    def follow() -> None:
        st.query_params.from_dict(parsed(st.session_state[key].go))

    def take() -> None:
        if on_edit is not None:
            on_edit(st.session_state[key].notes)

    data = {"html": content, "latent": latent, "noted": st.session_state.get("noted", 0)}
    data |= {"imported": imported}
    _component()(key=key, data=data, on_go_change=follow, on_notes_change=take)


def palette() -> Palette:
    """The colours of figures in the current theme."""
    return DARK if st.context.theme.type == "dark" else LIGHT


def plot(figure: "Figure", key: str) -> None:
    """Draw one of saelab's figures, for pages that need not be instant."""
    with st.container(key="figure"):
        st.plotly_chart(figure, theme=None, config={"displayModeBar": False}, key=key)


def tell(problem: str, key: str) -> None:
    """Show a problem, if there is one."""
    if problem:
        show(alone(html('<p class="notice">{p}</p>', p=problem)), key)


def go_to(address: AbstractAddress) -> None:
    """Set the address; the current or next run of the app shows it."""
    st.query_params.from_dict(address.params())


def change(page: type[A], change_of: Callable[[A], A]) -> None:
    """Change the page's address, as its widgets do.

    A widget may report a value while the reader follows a link to another page; that link counts.
    """
    params = st.query_params.to_dict()
    if params.get("view", HOME) == page.view:
        go_to(change_of(page.of(params)))


def search_field(
    key: str, text: str, *, label: str, hint: str, width: int, on_change: Callable[[], None]
) -> None:
    """The field of a page's search, with the text of the address in it.

    What the reader has typed stays as typed, if it differs in spaces alone.
    """
    if st.session_state.get(key, "").strip() != text.strip():
        st.session_state[key] = text
    st.text_input(
        label,
        key=key,
        placeholder=hint,
        on_change=on_change,
        label_visibility="collapsed",
        width=width,
    )


def style_page() -> None:
    """Apply the style sheet for Streamlit's own elements."""
    st.html(STATIC / "page.css")


@cache
def _component() -> ComponentRenderer:
    return component(
        "saelab.canvas",
        html='<div class="canvas"></div>',
        css="".join(path.read_text() for path in sorted(STATIC.glob("canvas*.css"))),
        js="".join(path.read_text() for path in sorted(STATIC.glob("canvas*.js"))),
    )

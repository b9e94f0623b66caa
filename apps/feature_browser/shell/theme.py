"""Which of the two themes the reader sees."""

import streamlit as st

from saelab.figures.style import DARK, LIGHT, Palette


def palette() -> Palette:
    """The colours of figures for the theme in use."""
    return DARK if st.context.theme.type == "dark" else LIGHT

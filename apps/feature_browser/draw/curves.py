"""The curves of a finished training, drawn once: Plotly takes a tenth of a second for them."""

from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from feature_browser.data.reading import metrics
from saelab.figures.style import Palette
from saelab.figures.training import training_figure

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs={Palette: repr})
def curves(run: Path, stamp: int, palette: Palette) -> "Figure":
    """The figure of the run at `run`, whose log has this modification time; it must have lines.

    Raises:
        UsageError: a line is damaged.
    """
    return training_figure(metrics(run, stamp), palette)

"""How the run was trained: its curves and its complete configuration."""

from typing import Any

import streamlit as st

from feature_browser.canvas import show
from feature_browser.catalogue import RunCard
from feature_browser.chrome import alone, message
from feature_browser.markup import Html, html
from feature_browser.reading import metrics
from feature_browser.tables import Column, cell, table
from feature_browser.theme import palette
from saelab.analysis.figures import training_figure


def training_view(card: RunCard) -> None:
    """Draw the curves and the configuration."""
    log = card.path / "metrics.jsonl"
    lines = metrics(card.path, log.stat().st_mtime_ns) if log.is_file() else []
    if lines:
        title = '<div class="page wide"><h1 class="headline">Training of {name}</h1></div>'
        show(html(title, name=card.name), "training-title")
        with st.container(key="figure"):
            figure = training_figure(lines, palette())
            st.plotly_chart(figure, theme=None, config={"displayModeBar": False}, key="training")
    else:
        imported = "This SAE was trained by another tool and imported."
        reason = f"{log} is missing or empty." if card.n_tokens else imported
        show(alone(message("No training log", reason)), "training-title")
    show(_configuration(card.config), "configuration")


def _configuration(config: dict[str, Any]) -> Html:
    rows = [[cell(name), html("<code>{v}</code>", v=value)] for name, value in flat(config)]
    body = table([Column("Option"), Column("Value")], rows, "Configuration")
    return html('<div class="page wide"><h2>Configuration</h2>{body}</div>', body=body)


def flat(config: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Every option by its dotted name."""
    rows: list[tuple[str, str]] = []
    for name, value in config.items():
        if isinstance(value, dict):
            rows += flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", "none" if value is None else str(value)))
    return rows

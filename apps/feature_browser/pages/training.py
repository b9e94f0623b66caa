"""How the run was trained: its curves and its complete configuration."""

from dataclasses import dataclass
from typing import Any

from feature_browser.data.address import AbstractAddress
from feature_browser.data.catalogue import Catalogue, RunCard, flat
from feature_browser.data.reading import metrics, stamp
from feature_browser.draw.boxes import alone, message
from feature_browser.draw.markup import Html, html
from feature_browser.draw.numbers import count
from feature_browser.draw.tables import Column, cell, table
from feature_browser.pages import Page
from feature_browser.shell.canvas import palette, plot, show
from saelab.figures.training import training_figure


@dataclass(frozen=True, kw_only=True)
class TrainingAddress(AbstractAddress):
    """The page has no parameters except the run."""

    view = "training"


def training_view(_: Catalogue, card: RunCard, address: TrainingAddress) -> None:
    """Draw the curves and the configuration."""
    del address
    log = card.path / "metrics.jsonl"
    lines = metrics(card.path, stamp(log)) if log.is_file() else []
    if lines:
        show(_headline(card, len(lines)), "training")
        plot(training_figure(lines, palette()), "curves")
    else:
        imported = "This SAE was trained by another tool and imported."
        reason = f"{log} is missing or empty." if card.n_tokens else imported
        show(alone(message("No training log", reason)), "training")
    show(_configuration(card.config), "configuration")


def _headline(card: RunCard, n_steps: int) -> Html:
    return html(
        '<div class="page wide"><h1 class="headline">Training of {name}</h1><p class="sub">{n} '
        "logged steps over the tokens seen · the pointer reads all curves at one step, drag to zoom"
        "</p></div>",
        name=card.name, n=count(n_steps),
    )  # fmt: skip


def _configuration(config: dict[str, Any]) -> Html:
    rows = [[cell(name), html("<code>{v}</code>", v=value)] for name, value in flat(config)]
    body = table([Column("Option"), Column("Value")], rows, "Configuration")
    return alone(html("<h2>Configuration</h2>{body}", body=body))


PAGE = Page(
    "Training",
    TrainingAddress,
    training_view,
    asks="How did training go, or how is it going, and with which options?",
)

"""How the run was trained: its curves and its complete configuration."""

from dataclasses import dataclass
from typing import Any

from feature_browser.data.address import AbstractAddress, one_of
from feature_browser.data.catalogue import Catalogue, RunCard, flat
from feature_browser.data.reading import curves, metrics, stamp
from feature_browser.draw.boxes import alone, boxed, message
from feature_browser.draw.charts import LARGE
from feature_browser.draw.markup import Html, html
from feature_browser.draw.numbers import count
from feature_browser.draw.tables import Column, cell, table
from feature_browser.draw.training_curves import Columns, column, logged, multiples
from feature_browser.pages import Page
from feature_browser.shell.canvas import palette, plot, show
from saelab.figures.training import training_figure

ZOOM = "zoom"
"""The part of this view that draws with Plotly, which takes longer than the whole page."""


@dataclass(frozen=True, kw_only=True)
class TrainingAddress(AbstractAddress):
    """Whether the figure to zoom into is drawn, too."""

    view = "training"
    part: str = one_of("scores", ZOOM)


def training_view(_: Catalogue, card: RunCard, address: TrainingAddress) -> None:
    """Draw the curves and the configuration."""
    log = card.path / "metrics.jsonl"
    found = curves(card.path, stamp(log)) if log.is_file() else {}
    if not found:
        imported = "This SAE was trained by another tool and imported."
        reason = f"{log} is missing or empty." if card.n_tokens else imported
        show(alone(message("No training log", reason)), "training")
    else:
        show(_curves(card, found, address), "training")
        if address.part == ZOOM:
            _figure(metrics(card.path, stamp(log)))
    show(_configuration(card.config), "configuration")


def _curves(card: RunCard, found: Columns, address: TrainingAddress) -> Html:
    n_steps = len(column(found, "tokens"))
    zoomed = address.part == ZOOM
    after = html(
        '<p><a href="{h}">{text}</a></p>',
        h=address.to(part="scores" if zoomed else ZOOM).href,
        text="close the figure" if zoomed else "zoom into FVU and dead latents",
    )
    hint = f"{count(n_steps)} logged steps · the pointer reads all curves at one step"
    note = html('<span class="hint">{hint}</span>', hint=hint)
    body = html("{charts}{after}", charts=multiples(found, logged(found), LARGE), after=after)
    return html(
        '<div class="page wide"><h1 class="headline">Training of {name}</h1>{body}</div>',
        name=card.name,
        body=boxed("Over the tokens seen", body, note=note),
    )


def _figure(lines: list[dict[str, Any]]) -> None:
    told = [line for line in lines if {"tokens", "fvu", "dead"} <= line.keys()]
    if not told:
        show(alone(message("No such figure", "The log has neither FVU nor dead latents.")), "zoom")
        return
    plot(training_figure(told, palette()), "zoomed")


def _configuration(config: dict[str, Any]) -> Html:
    rows = [[cell(name), html("<code>{v}</code>", v=value)] for name, value in flat(config)]
    body = table([Column("Option"), Column("Value")], rows, "Configuration")
    return html('<div class="page wide"><h2>Configuration</h2>{body}</div>', body=body)


PAGE = Page("Training", TrainingAddress, training_view)

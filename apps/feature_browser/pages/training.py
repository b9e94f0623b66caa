"""How the run was trained: its curves and its complete configuration."""

from typing import Any

from feature_browser.data.catalogue import RunCard
from feature_browser.data.reading import metrics, stamp
from feature_browser.draw.markup import Html, html
from feature_browser.draw.numbers import count
from feature_browser.draw.tables import Column, cell, table
from feature_browser.shell.canvas import plot, show
from feature_browser.shell.chrome import alone, message
from feature_browser.shell.place import Place
from feature_browser.shell.theme import palette
from saelab.figures.training import training_figure


def training_view(card: RunCard, place: Place) -> None:
    """Draw the curves and the configuration."""
    del place  # the view has no state
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

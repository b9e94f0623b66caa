"""How the run was trained, or is being trained: its curves and its complete configuration."""

from dataclasses import dataclass
from typing import Any

import streamlit as st

from feature_browser.data.address import AbstractAddress
from feature_browser.data.catalogue import Catalogue, RunCard
from feature_browser.data.elsewhere import Elsewhere, command, python
from feature_browser.data.growing import QUIET_S, GrowingRun, TrainingProgress, events, progress
from feature_browser.data.options import flat
from feature_browser.data.reading import list_runs, metrics, stamp
from feature_browser.draw.boxes import alone, bar, boxed, message
from feature_browser.draw.curves import curves
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import count, literal, percent, real, short_count
from feature_browser.draw.origin import origin_box
from feature_browser.draw.tables import Column, cell, table
from feature_browser.pages import Page
from feature_browser.shell.canvas import palette, plot, show
from saelab.config import UsageError
from saelab.console import duration
from saelab.figures.training import training_figure

SECONDS_BETWEEN_LOOKS = 2.0
EVENTS = 12


@dataclass(frozen=True, kw_only=True)
class TrainingAddress(AbstractAddress):
    """The page has no parameters except the run."""

    view = "training"


def training_view(catalogue: Catalogue, card: RunCard | None, address: TrainingAddress) -> None:
    """Draw the curves and the configuration."""
    if card is None:
        growing = catalogue.growing[address.run or ""]
        _watch(growing)
        show(_configuration(growing.config), "configuration")
        return
    log = card.path / "metrics.jsonl"
    lines = metrics(card.path, stamp(log)) if log.is_file() else []
    if lines:
        show(_headline(card, len(lines)), "training")
        plot(curves(card.path, stamp(log), palette()), "curves")
    else:
        missing = message("No training log", f"{log} is missing or empty.")
        show(alone(missing if card.origin is None else origin_box(card.origin)), "training")
    show(_configuration(card.config), "configuration")


@st.fragment(run_every=SECONDS_BETWEEN_LOOKS)
def _watch(run: GrowingRun) -> None:
    """Draw how far the training is, again and again until it ends."""
    if run.finished:
        list_runs.clear()
        st.rerun()
    try:
        lines = run.log()
    except UsageError as error:
        show(alone(message("The log cannot be read", str(error))), "training")
        return
    show(alone(_progress(run, progress(run, lines), len(lines))), "training")
    if lines:
        plot(training_figure(lines, palette()), "curves")


def _progress(run: GrowingRun, now: TrainingProgress, n_lines: int) -> Html:
    figures = [
        ("loss", "loss", 4),
        ("FVU", "fvu", 4),
        ("L0", "l0", 1),
        ("silent of late", "dead", 0),
    ]
    said = joined(
        html("<span>{name} <b>{value}</b></span>", name=title, value=real(now.last[key], digits))
        for title, key, digits in figures
        if isinstance(now.last.get(key), int | float)
    )
    happened = joined(
        html("<dt>{at}</dt><dd>{said}</dd>", at=at, said=text) for at, text in events(run)[:EVENTS]
    )
    return html(
        '<h1 class="headline">{name} is {state}</h1>{bar}<p class="sub">{said}</p>'
        '<p class="numbers">{figures}</p>{events}',
        name=run.name,
        state="in training" if run.writer else "unfinished",
        bar=EMPTY if now.share is None else bar(now.share),
        said=_sentence(run, now, n_lines),
        figures=said,
        events=boxed("Events (UTC)", html('<dl class="answers">{e}</dl>', e=happened)),
    )


def _sentence(run: GrowingRun, now: TrainingProgress, n_lines: int) -> str:
    parts = []
    tokens, speed = now.last.get("tokens"), now.last.get("tokens_per_second")
    if isinstance(tokens, int):
        share = "" if now.share is None else f" of {short_count(run.config['n_tokens'])}"
        parts.append(f"{short_count(tokens)}{share} tokens")
    if now.share is not None:
        parts.append(percent(now.share))
    if run.writer and isinstance(speed, int | float):
        parts.append(f"{short_count(round(speed))} tokens/s")
    if run.writer and now.seconds_left is not None:
        parts.append(f"{duration(now.seconds_left)} left")
    parts.append(f"{count(n_lines)} logged steps")
    if not run.writer:
        parts.append("no process trains it; run its `saelab train` again to continue")
    elif now.quiet_s > QUIET_S:
        parts.append(f"trained by {run.writer}, whose log has been quiet for "
                     f"{duration(now.quiet_s)}")  # fmt: skip
    else:
        parts.append(f"trained by {run.writer}")
    return " · ".join(parts)


def _headline(card: RunCard, n_steps: int) -> Html:
    return html(
        '<div class="page wide"><h1 class="headline">Training of {name}</h1><p class="sub">{n} '
        "logged steps over the tokens seen · the pointer reads all curves at one step, drag to zoom"
        "</p></div>",
        name=card.name, n=count(n_steps),
    )  # fmt: skip


def _configuration(config: dict[str, Any]) -> Html:
    rows = [
        [cell(name), html("<code>{v}</code>", v=cell(literal(value)))]
        for name, value in flat(config)
    ]
    body = table([Column("Option"), Column("Value")], rows, "Configuration")
    return alone(html("<h2>Configuration</h2>{body}", body=body))


def training_elsewhere(card: RunCard, _: TrainingAddress) -> Elsewhere:
    """The run's configuration, and its curves."""
    return Elsewhere(
        command("show", card.path),
        python(card, "import saelab", "", "saelab.figure(saelab.Run($RUN))"),
    )


PAGE = Page(
    "Training",
    TrainingAddress,
    training_view,
    unfinished=True,
    asks="How did training go, or how is it going, and with which options?",
    elsewhere=training_elsewhere,
)

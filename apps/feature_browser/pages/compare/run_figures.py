"""The figures and options of two runs, side by side."""

from collections.abc import Callable
from typing import Any

from feature_browser.data.catalogue import RunCard
from feature_browser.data.options import flat
from feature_browser.draw.boxes import boxed
from feature_browser.draw.markup import Html, html
from feature_browser.draw.numbers import (
    MINUS,
    UNKNOWN,
    Number,
    count,
    literal,
    real,
    share_of_whole,
    short_count,
)
from feature_browser.draw.tables import Column, cell, table

METRICS: list[tuple[str, Callable[[Any], str], str]] = [
    ("Latents", count, "d_sae"),
    ("Tokens of training", short_count, "n_tokens"),
    ("L0, active per token", real, "l0"),
    ("FVU, 0 is perfect", lambda value: real(value, 4), "fvu"),
    ("CE recovered", share_of_whole, "ce_recovered"),
    ("Dead latents", count, "dead"),
    ("Known features found", count, "found"),
]
"""For each figure: title, format, and attribute of RunCard."""


def figures(card: RunCard, other: RunCard) -> Html:
    """The figures of both runs, their differences, and the options that differ."""
    rows = []
    for title, text, key in METRICS:
        first, second = getattr(card, key), getattr(other, key)
        shown = [cell(UNKNOWN if value is None else text(value)) for value in (first, second)]
        rows.append([cell(title), *shown, cell(_difference(first, second, text))])
    columns = [
        Column("Figure"),
        Column(card.name, numeric=True),
        Column(other.name, numeric=True),
        Column("Difference", "second minus first", numeric=True),
    ]
    return html(
        '<div class="two"><div>{figures}</div><div>{options}</div></div>',
        figures=table(columns, rows, "Figures of the two runs"), options=_differing(card, other),
    )  # fmt: skip


def _difference(first: float | None, second: float | None, text: Callable[[Any], str]) -> str:
    if first is None or second is None:
        return UNKNOWN
    if first == second:
        return Number.of(0, "same")
    shown = f"{MINUS if second < first else '+'}{text(abs(second - first))}"
    return Number.of(second - first, shown)


def _differing(card: RunCard, other: RunCard) -> Html:
    first, second = dict(flat(card.config)), dict(flat(other.config))
    names = [name for name in first | second if first.get(name) != second.get(name)]
    rows = [
        [cell(name), *(html("<code>{v}</code>", v=cell(literal(one.get(name, UNKNOWN))))
                       for one in (first, second))]
        for name in names
    ]  # fmt: skip
    if not rows:
        return boxed("Options", html('<p class="sub">All options are the same.</p>'))
    columns = [Column("Option that differs"), Column(card.name), Column(other.name)]
    return table(columns, rows, "Options that differ")

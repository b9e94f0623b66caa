"""The tables that `saelab evaluate` prints, as HTML."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from feature_browser.draw.boxes import boxed
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.tables import Column, cell, table

if TYPE_CHECKING:
    from saelab.evaluation.report import Section


def section_table(
    section: "Section", drawn: Callable[[str, str], Html] = lambda _, text: cell(text)
) -> Html:
    """A titled table with what a reader must know; empty without rows.

    `drawn` makes the HTML of a cell from the name of its column and its text.
    """
    if not section.rows:
        return EMPTY
    names = [column.name.replace("\n", " ").strip() for column in section.columns]
    columns = [
        Column(name, numeric=column.number)
        for name, column in zip(names, section.columns, strict=True)
    ]
    rows = [
        [drawn(name, text) for name, text in zip(names, row, strict=True)] for row in section.rows
    ]
    warnings = joined(html('<p class="notice">{w}</p>', w=text) for text in section.warnings)
    about = html('<p class="sub">{text}</p>', text=section.about) if section.about else EMPTY
    return boxed(section.title, joined([about, table(columns, rows, section.title), warnings]))

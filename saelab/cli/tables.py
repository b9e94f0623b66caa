"""Tables for people: what an evaluation says, in words."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from saelab.console import cells, shown
from saelab.evaluation.report import Section

LEAST_TEXT = 16
"""Columns of a terminal that text needs beside numbers."""


def wide_console() -> Console:
    """Standard output, at least 100 columns wide where nobody has set a width."""
    console = Console()
    return console if console.is_terminal else Console(width=max(100, console.width))


def _number_widths(section: Section, width: int) -> list[int | None]:
    """The widths of columns of numbers where a table must wrap, so that only words do.

    None: of columns of text, of a table that need not wrap, or cannot without breaking numbers.
    """
    whole, least = [], []
    for i, column in enumerate(section.columns):
        longest = max(len(row[i]) for row in section.rows)
        whole.append(max([longest, *map(len, column.name.split("\n"))]))
        unbroken = max([longest, *map(len, column.name.split())])
        least.append(unbroken if column.number else min(unbroken, LEAST_TEXT))
    beside = 2 * len(least)
    if sum(whole) + beside <= width or sum(least) + beside > width:
        return [None] * len(least)
    return [n if c.number else None for n, c in zip(least, section.columns, strict=True)]


def print_section(console: Console, section: Section, ends: int | None = None) -> None:
    """Print a table; `ends` shows so many rows of either end only."""
    if not section.rows:
        return
    if section.about:
        console.print(f"\n{section.title}. {section.about}\n", soft_wrap=True)
    title = None if section.about else f"\n{section.title}"
    table = Table(title=title, title_justify="left", box=None)
    widths = _number_widths(section, console.width)
    for column, width in zip(section.columns, widths, strict=True):
        name = Text("\n".join(map(shown, column.name.split("\n"))))
        side = "right" if column.number else "left"
        table.add_column(name, justify=side, style=column.style, overflow="fold", width=width)
    n = len(section.rows)
    for i, row in enumerate(section.rows):
        if ends is None or i < ends or i >= n - ends:
            table.add_row(*cells(*row))
        elif i == ends:
            table.add_row(f"… {n - 2 * ends} more in the browser", style="dim")
    console.print(table)
    for warning in section.warnings:
        console.print(f"\n{warning}", style="yellow", soft_wrap=True)

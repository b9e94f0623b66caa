"""Tables for people: what an evaluation says, in words."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from saelab.console import cells, shown
from saelab.evaluation.report import Section


def wide_console() -> Console:
    """Standard output, at least 100 columns wide where nobody has set a width."""
    console = Console()
    return console if console.is_terminal else Console(width=max(100, console.width))


def print_section(console: Console, section: Section, ends: int | None = None) -> None:
    """Print a table; `ends` shows so many rows of either end only."""
    if not section.rows:
        return
    if section.about:
        console.print(f"\n{section.title}. {section.about}\n", soft_wrap=True)
    title = None if section.about else f"\n{section.title}"
    table = Table(title=title, title_justify="left", box=None)
    for column in section.columns:
        name = Text("\n".join(map(shown, column.name.split("\n"))))
        side = "right" if column.number else "left"
        table.add_column(name, justify=side, style=column.style, overflow="fold")
    n = len(section.rows)
    for i, row in enumerate(section.rows):
        if ends is None or i < ends or i >= n - ends:
            table.add_row(*cells(*row))
        elif i == ends:
            table.add_row(f"… {n - 2 * ends} more in the browser", style="dim")
    console.print(table)
    for warning in section.warnings:
        console.print(f"\n{warning}", style="yellow", soft_wrap=True)

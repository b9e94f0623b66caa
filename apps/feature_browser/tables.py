"""Tables of numbers whose headings sort and whose rows lead on."""

from collections.abc import Iterable
from dataclasses import dataclass

from feature_browser.markup import EMPTY, Html, html, joined


@dataclass(frozen=True)
class Column:
    """One column: its heading, a sentence of help, and whether it holds numbers.

    Attributes:
        href: where the heading leads (sorting), if anywhere.
        sorted: the table is in this column's order.
    """

    title: str
    help: str = ""
    numeric: bool = False
    href: str = ""
    sorted: bool = False


def table(columns: list[Column], rows: Iterable[list[Html]], caption: str) -> Html:
    """An HTML table; `caption` is read aloud, not shown."""
    head = joined(_heading(column) for column in columns)
    body = joined(_row(columns, row) for row in rows)
    return html(
        '<div class="scroll"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        "<tbody>{body}</tbody></table></div>",
        caption=caption, head=head, body=body,
    )  # fmt: skip


def link(href: str, text: object) -> Html:
    """A link inside the app."""
    return html('<a href="{href}">{text}</a>', href=href, text=text)


def metered(text: str, share: float) -> Html:
    """A number with a bar from 0 to 1 under it."""
    return html(
        '<span class="metered">{text}<i style="width:{w}%"></i></span>',
        text=text,
        w=f"{100 * min(1.0, max(0.0, share)):.0f}",
    )


def cell(value: object) -> Html:
    """Plain text."""
    return html("{value}", value=value)


def _heading(column: Column) -> Html:
    title = link(column.href, column.title) if column.href else cell(column.title)
    return html(
        '<th scope="col" title="{help}"{numeric}{order}>{title}</th>',
        help=column.help,
        numeric=_numeric(column),
        order=Html(' aria-sort="other"') if column.sorted else EMPTY,
        title=title,
    )


def _numeric(column: Column) -> Html:
    return Html(' class="number"') if column.numeric else EMPTY


def _row(columns: list[Column], row: list[Html]) -> Html:
    cells = joined(
        html("<td{numeric}>{value}</td>", numeric=_numeric(column), value=value)
        for column, value in zip(columns, row, strict=True)
    )
    return html("<tr>{cells}</tr>", cells=cells)

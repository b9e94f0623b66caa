"""Tables of numbers with sortable headings and linked rows."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from feature_browser.data.address import AbstractAddress
from feature_browser.data.known import Known
from feature_browser.data.labels import SURE
from feature_browser.data.reading import OpenRun
from feature_browser.draw.markup import EMPTY, Html, escaped, html, joined
from feature_browser.draw.numbers import UNKNOWN, Number, count, real
from saelab.console import visible


@dataclass(frozen=True)
class Column:
    """One column: its heading, a sentence of help, and whether it holds numbers.

    Attributes:
        saved: its name in a saved file, where its title alone does not tell it from another; None
            if it holds only buttons, and is not saved.
        href: the heading's link (sorting), if it has one.
        sorted: whether the table is sorted by this column, descending unless `rising`.
    """

    title: str
    help: str = ""
    numeric: bool = False
    href: str = ""
    sorted: bool = False
    rising: bool = False
    saved: str | None = ""


def table(columns: list[Column], rows: Iterable[list[Html]], caption: str) -> Html:
    """An HTML table; `caption` is read aloud, not shown.

    Its rows are saved with the values of numbers (see `cell`), and with a column for each part of a
    cell (see `part`).
    """
    head = joined(_heading(column) for column in columns)
    body = joined(_row(columns, row) for row in rows)
    return html(
        '<div class="tabled"><div class="scroll"><table><caption>{caption}</caption><thead><tr>'
        '{head}</tr></thead><tbody>{body}</tbody></table></div><p class="exports">these rows as '
        '<button class="plain" data-export="csv">CSV</button> '
        '<button class="plain" data-export="jsonl">JSONL</button></p></div>',
        caption=caption, head=head, body=body,
    )  # fmt: skip


class Paged(Protocol):
    """An address that says which page of a table is shown."""

    @property
    def page(self) -> str:
        """Its number, from 1 on."""
        ...

    def to(self, **changes: object) -> AbstractAddress:
        """The same with some parameters changed."""
        ...


class Sorted(Paged, Protocol):
    """An address that also says by which column the table is sorted."""

    @property
    def sort(self) -> str:
        """Its name."""
        ...


def sortable(
    heads: Mapping[str, tuple[str, str]],
    address: Sorted,
    *,
    words: Collection[str] = ("latent",),
    rising: Collection[str] = ("latent",),
) -> list[Column]:
    """Columns whose headings sort the table, from titles and sentences of help by name.

    Columns in `words` hold no numbers, and those in `rising` are sorted from the least.
    """
    links = {name: address.to(sort=name, page=1).href for name in heads}
    return [
        Column(title, text, name not in words, links[name], name == address.sort, name in rising)
        for name, (title, text) in heads.items()
    ]


def page_of(address: Paged, n_rows: int, size: int) -> tuple[slice, Html]:
    """The rows of the page that the address names, or of the last page; and `page_links`."""
    pages = max(1, -(-n_rows // size))
    page = min(int(address.page), pages)
    return slice((page - 1) * size, page * size), page_links(address, page, pages)


def page_links(address: Paged, page: int, pages: int) -> Html:
    """Links to the first, the last and the neighbouring pages; empty for a single page."""
    if pages == 1:
        return EMPTY
    around = sorted({1, 2, page - 1, page, page + 1, pages} & set(range(1, pages + 1)))
    links = joined(
        html(
            '<a href="{href}"{on}>{n}</a>',
            href=address.to(page=n).href,
            on=Html(' aria-current="page"') if n == page else EMPTY,
            n=count(n),
        )
        for n in around
    )
    return html('<nav class="choice pages" aria-label="Pages"><span>page</span>{l}</nav>', l=links)


def choice(title: str, options: Sequence[tuple[str, AbstractAddress, bool]]) -> Html:
    """Links of which one is selected: name, address, whether it is selected."""
    links = joined(
        html(
            '<a href="{href}"{on}>{name}</a>',
            href=address.href,
            on=Html(' aria-current="true"') if current else EMPTY,
            name=name,
        )
        for name, address, current in options
    )
    return html('<div class="choice"><span>{title}</span>{links}</div>', title=title, links=links)


def anchor(href: str, text: object) -> Html:
    """A link inside the app."""
    return html('<a href="{href}">{text}</a>', href=href, text=cell(text))


def metered(text: str, share: float, column: str = "") -> Html:
    """A number with a bar from 0 to 1 below it; with `column`, a `part`."""
    return html(
        '<span class="metered">{text}<i style="width:{w}%"></i></span>',
        text=part(text, column) if column else cell(text),
        w=f"{100 * min(1.0, max(0.0, share)):.0f}",
    )


def matched(known: Known | None, latent: int) -> Html:
    """The known feature that a latent matches best, with its F1; bold only if it fits well."""
    match = known.matches.get(latent) if known else None
    if match is None:
        return html('<span class="sub">{none}</span>', none=UNKNOWN)
    f1 = metered(real(match.f1), match.f1, "F1")
    how = "name" if match.f1 >= SURE else "name guess"
    return html('<span class="{how}">{title}</span> {f1}', how=how, title=match.title, f1=f1)


def raised(run: OpenRun, latent: int) -> Html:
    """The tokens whose logits a latent raises most; unknown of one without features."""
    file = run.features.file
    if "logits/top_tokens" not in file or latent not in run.features.latents:
        return cell(UNKNOWN)
    tokens = file["logits/top_tokens"][run.features.place(latent)][:4]
    return joined(html("<code>{t}</code> ", t=visible(file.token(int(t)))) for t in tokens)


def cell(value: object) -> Html:
    """Plain text, or a number with the value that is saved."""
    if isinstance(value, Number):
        return html('<data value="{exact}">{shown}</data>', exact=Html(value.exact), shown=value)
    if type(value) is int:
        return html('<data value="{exact}">{shown}</data>', exact=Html(value), shown=value)
    return html("{value}", value=value)


def part(value: object, column: str, shown: str = "") -> Html:
    """What is saved in a column of its own, called as that of its cell and this."""
    exact = value.exact if isinstance(value, Number) else str(value)
    return html(
        '<data value="{exact}" data-column="{column}">{shown}</data>',
        exact=escaped(exact), column=escaped(column), shown=shown or value,
    )  # fmt: skip


def unseen(value: object, column: str) -> Html:
    """A `part` that is saved, and not shown."""
    return html("<span hidden>{p}</span>", p=part(value, column, " "))


def sided(latent: int, sign: float) -> Html:
    """A latent's number, and whether its negative side is meant."""
    side = html(" {s}", s=part("negative", "side", "(negative)")) if sign < 0 else EMPTY
    return joined([cell(int(latent)), side])


def _heading(column: Column) -> Html:
    title = anchor(column.href, column.title) if column.href else cell(column.title)
    return html(
        '<th scope="col" title="{help}"{numeric}{order}{saved}>{title}</th>',
        help=column.help,
        saved=_saved(column),
        numeric=_numeric(column),
        order=_order(column) if column.sorted else EMPTY,
        title=title,
    )


def _saved(column: Column) -> Html:
    if column.saved is None:
        return Html(" data-unsaved")
    return html(' data-saved="{s}"', s=escaped(column.saved)) if column.saved else EMPTY


def _order(column: Column) -> Html:
    return html(' aria-sort="{order}"', order="ascending" if column.rising else "descending")


def _numeric(column: Column) -> Html:
    return Html(' class="number"') if column.numeric else EMPTY


def _row(columns: list[Column], row: list[Html]) -> Html:
    cells = joined(
        html("<td{numeric}>{value}</td>", numeric=_numeric(column), value=value)
        for column, value in zip(columns, row, strict=True)
    )
    return html("<tr>{cells}</tr>", cells=cells)

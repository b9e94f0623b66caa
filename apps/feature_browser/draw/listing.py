"""The lists that a latent is on, and the fields that put it on one."""

from feature_browser.data.address import link
from feature_browser.data.catalogue import RunCard
from feature_browser.data.labels import lists_of
from feature_browser.draw.markup import EMPTY, Html, escaped, html, joined
from saelab.analysis.lists import LONGEST_COMMENT, LONGEST_NAME, STAY, Entry, EntryText


def entry_text(name: str, place: float | str, comment: str = "") -> Html:
    """The value of an edit, for an attribute."""
    where = place if isinstance(place, str) else f"{place:.17g}"
    return escaped(EntryText(name, where, comment).value)


def edit_button(text: str, said: str, latent: int, edit: Html, was: Html) -> Html:
    """A button that writes an edit of a list's entry."""
    return html(
        '<button class="plain" data-entry="{edit}" data-was="{was}" data-of="{latent}" '
        'aria-label="{said}" title="{said}">{text}</button>',
        edit=edit, was=was, latent=Html(latent), said=escaped(said), text=text,
    )  # fmt: skip


def listing(card: RunCard, latent: int, *, writable: bool) -> Html:
    """The lists that the latent is on; where it is `writable`, they can be changed."""
    lists = lists_of(card)
    on = {
        name: entry for name, entries in lists.items() for entry in entries
        if entry.latent == latent
    }  # fmt: skip
    if not (writable or on):
        return EMPTY
    rows = joined(_row(card, name, entry, writable=writable) for name, entry in on.items())
    return html(
        '<details class="note listing"><summary>{title}</summary>{rows}{fields}</details>',
        title=f"on {', '.join(on)}" if on else "put it on a list: A",
        rows=html('<ul class="earlier">{rows}</ul>', rows=rows) if on else EMPTY,
        fields=_fields(list(lists), latent) if writable else EMPTY,
    )


def _row(card: RunCard, name: str, entry: Entry, *, writable: bool) -> Html:
    was = entry_text(name, entry.place, entry.comment)
    off = edit_button("take off", f"Take {entry.latent} off {name}", entry.latent,
                      escaped(name), was)  # fmt: skip
    return html(
        '<li data-on="{on}" data-was="{was}"><a href="{href}">{name}</a>{comment} {off}</li>',
        on=escaped(name), was=was, name=name, off=off if writable else EMPTY,
        href=link("lists", run=card.name, list=name),
        comment=html(": {c}", c=entry.comment) if entry.comment else EMPTY,
    )  # fmt: skip


def _fields(names: list[str], latent: int) -> Html:
    known = joined(html('<option value="{n}"></option>', n=escaped(name)) for name in names)
    return html(
        '<div class="put"><input data-list-name list="lists-{latent}" maxlength="{longest}" '
        'aria-label="List for latent {latent}" placeholder="list, a new or an old one" '
        'autocomplete="off" dir="auto"><datalist id="lists-{latent}">{known}</datalist>'
        '<input data-list-comment maxlength="{longest_comment}" autocomplete="off" dir="auto" '
        'aria-label="Comment on latent {latent} there" placeholder="comment">'
        '<button class="copy" data-put>Put it there</button></div>',
        latent=Html(latent), known=known, longest=LONGEST_NAME, longest_comment=LONGEST_COMMENT,
    )  # fmt: skip


def comment_field(name: str, entry: Entry, *, writable: bool) -> Html:
    """The comment of an entry, editable in place."""
    return html(
        '<span class="labelled"><input class="label" data-note="list" data-of="{latent}" '
        'data-list="{start}" value="{comment}" maxlength="{longest}" placeholder=" " '
        'aria-label="Comment on latent {latent}" autocomplete="off" dir="auto"{fixed}></span>',
        latent=Html(entry.latent), start=entry_text(name, STAY), comment=escaped(entry.comment),
        longest=LONGEST_COMMENT, fixed=EMPTY if writable else Html(" readonly"),
    )  # fmt: skip

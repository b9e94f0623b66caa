"""A reader's lists of latents: ordered, commented, exchanged as a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import streamlit as st

from feature_browser.data.address import AbstractAddress, page_number, parameter
from feature_browser.data.catalogue import Catalogue, RunCard
from feature_browser.data.elsewhere import NOWHERE, Elsewhere, command, python
from feature_browser.data.labels import LatentNames, lists_of
from feature_browser.data.reading import OpenRun, open_run
from feature_browser.draw import annotate
from feature_browser.draw.annotate import Keeper
from feature_browser.draw.boxes import alone, message
from feature_browser.draw.listing import comment_field, edit_button, entry_text
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.names import named
from feature_browser.draw.numbers import UNKNOWN, activation, count, percent
from feature_browser.draw.tables import Column, anchor, cell, choice, page_of, raised, table
from feature_browser.pages import Page
from feature_browser.shell.canvas import show
from saelab.analysis.lists import BEFORE, END, Entry
from saelab.analysis.lists_file import import_lists, parsed_lists, values_of, written_lists
from saelab.analysis.notes import Notes
from saelab.config import UsageError

ROWS = 100
FILE = "lists-file"
Lists = Mapping[str, tuple[Entry, ...]]


@dataclass(frozen=True, kw_only=True)
class ListsAddress(AbstractAddress):
    """The list that is shown; the first by name if it is empty."""

    view = "lists"
    list: str = parameter("")
    page: str = page_number()


def lists_view(_: Catalogue, card: RunCard, address: ListsAddress) -> None:
    """Draw the chosen list, and the others' names."""
    run, lists = open_run(card), lists_of(card)
    Notes(card.path).lists()  # Damaged notes are told instead.
    with st.container(key="controls", horizontal=True):
        _exchange(card, lists)
        chosen = _chosen(lists, address)
        options = [
            (f"{name} {count(len(entries))}", address.to(list=name, page=1), name == chosen)
            for name, entries in lists.items()
        ]
        show(choice("list", options) if options else EMPTY, "context")
    show(alone(_page(run, lists, address)), "lists", on_edit=Keeper.of(card),
         imported=annotate.last_import(card.path))  # fmt: skip


def _chosen(lists: Lists, address: ListsAddress) -> str:
    return address.list or next(iter(lists), "")


def _page(run: OpenRun, lists: Lists, address: ListsAddress) -> Html:
    name = _chosen(lists, address)
    if not name:
        text = (
            "On a latent's page, A puts it on a list, with a comment; so does Ctrl K, “add NAME”. "
            "The order is yours, and a list can be saved, sent and published."
        )
        return message("No lists yet", text)
    if name not in lists:
        text = "Its last latent was taken off, or it was never made; Ctrl Z brings the last back."
        return message(f"There is no list {name}", text)
    entries = [one for one in lists[name] if one.latent < run.card.d_sae]
    unknown = len(lists[name]) - len(entries)
    part, links = page_of(address, len(entries), ROWS)
    rows = [_row(run, name, entries, place, address) for place in range(len(entries))[part]]
    columns = [
        Column("Latent"),
        Column("Comment", "click to write"),
        Column("Name", "its label, the known feature it matches, or what its examples share"),
        Column("Density", "share of tokens on which it fires", numeric=True),
        Column("Max", "largest activation, without its sign", numeric=True),
        Column("Raises", "the tokens whose logits it raises most"),
        Column("Order", saved=None),
    ]
    gone = f" · {count(unknown)} numbers are of no latent of this run" if unknown else ""
    return html(
        '<h1 class="headline">{name}</h1><p class="sub">{n} latent{s}{gone} · <a href="{beside}">'
        "the first four side by side</a></p>{table}{links}",
        name=name, n=count(len(entries)), s="s" * (len(entries) != 1), gone=gone, links=links,
        beside=address.visit("beside", latents=",".join(str(one.latent) for one in entries[:4])),
        table=table(columns, rows, f"List {name}"),
    )  # fmt: skip


def _row(
    run: OpenRun, name: str, entries: list[Entry], place: int, address: ListsAddress
) -> list[Html]:
    one, names = entries[place], LatentNames.of(run.card)
    writable = Notes(run.card.path).writable
    return [
        anchor(address.visit("latent", latent=one.latent), one.latent),
        comment_field(name, one, writable=writable),
        named(names.best(one.latent)),
        *_figures(run, one.latent),
        raised(run, one.latent),
        _moves(name, entries, place) if writable else EMPTY,
    ]


def _figures(run: OpenRun, latent: int) -> tuple[Html, Html]:
    """Density and maximum, or that they are not known."""
    if latent not in run.features.latents:
        return html('<span class="sub">no features collected</span>'), cell(UNKNOWN)
    place = run.features.place(latent)
    density, most = (float(run.columns[name][place]) for name in ("density", "max"))
    return cell(percent(density)), cell(activation(most))


def _moves(name: str, entries: list[Entry], place: int) -> Html:
    """Buttons that move an entry by one, or take it off."""
    one = entries[place]
    was = entry_text(name, one.place, one.comment)
    wanted: list[tuple[str, str, str]] = []
    if place > 0:
        wanted.append(("↑", f"Move {one.latent} up", f"{BEFORE}{entries[place - 1].latent}"))
    if place + 1 < len(entries):
        after = f"{BEFORE}{entries[place + 2].latent}" if place + 2 < len(entries) else END
        wanted.append(("↓", f"Move {one.latent} down", after))
    buttons = [
        edit_button(sign, said, one.latent, entry_text(name, where, one.comment), was)
        for sign, said, where in wanted
    ]
    off = edit_button("take off", f"Take {one.latent} off the list", one.latent,
                      entry_text(name, ""), was)  # fmt: skip
    return html('<span class="moves">{buttons}</span>', buttons=joined([*buttons, off]))


def _exchange(card: RunCard, lists: Lists) -> None:
    with st.popover("Lists …", key="exchange-lists", help="Lists as a file of JSON lines"):
        st.download_button(
            "Export all as JSONL",
            partial(written_lists, lists),
            file_name=f"{card.own_name}-lists.jsonl",
            on_click="ignore",
            key="lists-jsonl",
            disabled=not lists,
        )
        st.file_uploader(
            "Import lists; latents are put behind those that are there",
            type=["jsonl"],
            key=FILE,
            on_change=_taken,
            args=(card,),
            disabled=not Notes(card.path).writable,
        )


def _taken(card: RunCard) -> None:
    file = st.session_state[FILE]
    if file is None:
        return
    try:
        found = parsed_lists(file.getvalue(), file.name)
        before = values_of(card.path, found)
        n = import_lists(card.path, card.d_sae, found)
        annotate.keep_import(card.path, before, values_of(card.path, found))
        annotate.say(f"{n} entries were read from {file.name}; Ctrl Z takes them back.")
    except UsageError as error:
        annotate.say(str(error))


def lists_elsewhere(card: RunCard, address: ListsAddress) -> Elsewhere:
    """The list's latents as pages to send, and in Python."""
    lists = lists_of(card)
    name = _chosen(lists, address)
    if name not in lists:
        return NOWHERE
    return Elsewhere(
        command("publish", card.path, "--list", name, "--out", "site"),
        python(
            card,
            "from pathlib import Path",
            "from saelab import Features",
            "from saelab.analysis.lists_file import list_of",
            "",
            "features = Features.of($RUN)",
            "for entry in list_of(Path($RUN), $name):",
            "    known = entry.latent in features.latents",
            "    said = features.fires_on(entry.latent) if known else 'no features collected'",
            "    print(entry.latent, entry.comment, said)",
            name=name,
        ),
    )


PAGE = Page(
    "Lists",
    ListsAddress,
    lists_view,
    needs_features=True,
    asks="Which latents have I kept, and what did I say of each?",
    elsewhere=lists_elsewhere,
)

"""All latents of a run as a table: sorted, searched, labelled, fifty at a time."""

import numpy as np
import streamlit as st
from jaxtyping import Int
from numpy import ndarray

from feature_browser.data.catalogue import Catalogue, RunCard
from feature_browser.data.elsewhere import Elsewhere, command, python
from feature_browser.data.labels import LatentNames
from feature_browser.data.reading import OpenRun, open_run
from feature_browser.draw.annotate import Keeper
from feature_browser.draw.boxes import alone
from feature_browser.draw.markup import EMPTY, Html, escaped, html, joined
from feature_browser.draw.numbers import UNKNOWN, activation, count, percent, real
from feature_browser.draw.tables import (
    Column,
    anchor,
    cell,
    choice,
    matched,
    page_of,
    part,
    raised,
    sortable,
    table,
)
from feature_browser.pages import Page
from feature_browser.pages.latents import latents_scatter
from feature_browser.pages.latents.address import LatentsAddress
from feature_browser.pages.latents.chosen import chosen_table
from feature_browser.pages.latents.exchange import exchange
from feature_browser.pages.latents.hits import Hits, hits_of, order
from feature_browser.pages.latents.latents_scatter import axes_of, toggle
from feature_browser.shell.canvas import change, search_field, show
from saelab.analysis.notes import LONGEST, Note, Notes

ROWS = 50
EXPLAINED = ("explained", "accepted", "rejected")
SEARCH = "search-latents"
SCORE = (
    "how well the explanation predicts where it fires, by the judge who thinks least; .5: chance"
)
HELP = {
    "latent": "its number",
    "f1": "F1 of the known feature it matches best",
    "density": "share of tokens on which it fires",
    "max": "largest activation, without its sign",
    "mean": "mean activation when on, without its sign",
    "negative": "share of its firings below zero",
}


def latents_view(_: Catalogue, card: RunCard, address: LatentsAddress) -> None:
    """Draw the table that `address` asks for."""
    run = open_run(card)
    if run.features.numbers is not None:
        show(alone(chosen_table(run)), "latents", on_edit=Keeper.of(card))
        return
    _search_box(run, address)
    names = LatentNames.of(run.card)
    hits = hits_of(run, names, address)
    ordered = order(run, hits.latents, address.sort, names)
    part, links = page_of(address, len(ordered), ROWS)
    rows = ordered[part]
    content = [
        _picture(run, address, hits) if axes_of(address) else EMPTY,
        _summary(run, address, hits),
        _table(run, names, address, rows) if len(rows) else _nothing(address),
        links,
    ]
    show(alone(joined(content)), "latents", on_edit=Keeper.of(run.card))


def _picture(run: OpenRun, address: LatentsAddress, hits: Hits) -> Html:
    """Cached, since tens of thousands of latents take a second to draw."""

    def draw(run: OpenRun, address: LatentsAddress) -> Html:
        listed = np.zeros(len(run.features), dtype=bool)
        listed[hits.latents] = True
        return latents_scatter.picture(run, address, listed)

    return run.page(address.to(page=1), draw)


def _search_box(run: OpenRun, address: LatentsAddress) -> None:
    with st.container(key="controls", horizontal=True):
        search_field(
            SEARCH,
            address.q,
            label="Search numbers, labels, explanations, known features, tokens and example text",
            hint="Search a number, label, token or example text",
            width=340,
            on_change=_searched,
        )
        parts = {"": "all", "labelled": "labelled", "bookmarked": "★ bookmarked"}
        if LatentNames.of(run.card).explained.by_latent or address.keep in EXPLAINED:
            parts |= {part: part for part in EXPLAINED}
        n_massive = 0 if run.features.massive is None else int((run.features.massive > 0).sum())
        if n_massive or address.keep in {"ordinary", "massive"}:
            parts |= {"ordinary": "without massive", "massive": f"massive {count(n_massive)}"}
        if address.q.strip():
            parts["firing"] = "fires on the text"
        options = [
            (name, address.to(keep=part, page=1), part == address.keep)
            for part, name in parts.items()
        ]
        exchange(run.card)
        show(joined([choice("show", options), choice("", [toggle(address)])]), "context")


def _searched() -> None:
    text = st.session_state[SEARCH]

    def found(now: LatentsAddress) -> LatentsAddress:
        keep = "" if now.keep == "firing" and not text.strip() else now.keep
        return now.to(q=text, keep=keep, page=1)

    change(LatentsAddress, found)


def _summary(run: OpenRun, address: LatentsAddress, hits: Hits) -> Html:
    n, shown = len(run.features), len(hits.latents)
    if address.keep or address.box or address.q.strip():
        hidden = (
            f"hidden: {count(n - shown)} by {'the search' if address.q.strip() else 'the filter'}"
        )
    else:
        hidden = f"hidden: {count(n - shown)} dead"
    if address.keep == "ordinary":
        hidden += ", which leaves out latents that fire mostly on massive activations"
    if address.keep == "massive":
        hidden += "; shown are those that fire mostly on massive activations"
    why = ", ".join(f"{count(found)} by {by}" for by, found in hits.reasons.items() if found)
    told = [f"{count(shown)} of {count(n)} latents", hidden, *([f"found {why}"] if why else [])]
    if hits.left_out:
        told.append(hits.left_out)
    if address.box:
        told.append("one cell of the picture")
    undo = html(' · <a href="{h}">show all</a>', h=address.to(box="", page=1).href)
    return html(
        '<p class="sub summary">{told}{undo}</p>',
        told=" · ".join(told),
        undo=undo if address.box else EMPTY,
    )


def _nothing(address: LatentsAddress) -> Html:
    if address.keep in EXPLAINED and not address.q.strip():
        text = (
            "No latent is of this kind: `saelab explain RUN` explains latents, and a latent's page "
            "accepts and rejects its explanations."
        )
    elif address.keep and not address.q.strip():
        text = "Nothing is written yet: on a latent's page, L labels it and B bookmarks it."
    else:
        text = "No latent is found by this search."
    if address.keep in {"ordinary", "massive"} and not address.q.strip():
        text = "No latent is of this kind."
    return html('<p class="sub">{t}</p>', t=text)


def _table(
    run: OpenRun, names: LatentNames, address: LatentsAddress, latents: Int[ndarray, " shown"]
) -> Html:
    titles = {"latent": "Latent", "f1": "Known feature · F1", "density": "Density", "max": "Max",
              "mean": "Mean when on", "negative": "Negative side"}  # fmt: skip
    signed = bool(run.columns["n_negative"].any())
    without = {"negative": signed, "f1": bool(run.known.matches)}
    shown = [name for name in titles if without.get(name, True)]
    heads = {name: (titles[name], HELP[name]) for name in shown}
    columns = sortable(heads, address, words=("latent", "f1"))
    editable = not names.labels.problem and Notes(run.card.path).writable
    told = "what its readers call it; ★: bookmarked"
    columns.insert(1, Column("Label", f"{told}; click to write" if editable else told))
    explained = names.explained.by_latent
    if explained:
        columns.append(
            Column("Explained as", "by a language model; bold if a reader has accepted it")
        )
        columns.append(sortable({"score": ("Score", SCORE)}, address)[0])
    columns.append(Column("Fires on", "what its strongest examples share; no model has named it"))
    columns.append(Column("Raises", "the tokens whose logits it raises most"))
    notes = names.labels
    rows = (
        [
            *_row(run, _label(notes.of(i), i if editable else None), address, i, shown),
            *(_explanation(names, i, rejected=address.keep == "rejected") if explained else []),
            html('<span class="sub shared">{t}</span>', t=names.shared(i) or UNKNOWN),
            raised(run, i),
        ]
        for i in latents.tolist()
    )
    return table(columns, rows, "Latents")


def _explanation(names: LatentNames, latent: int, *, rejected: bool) -> list[Html]:
    """The best explanation with its model, and its score with who gave it; or a rejected one."""
    note, every = names.labels.of(latent), names.explained.by_latent.get(latent, ())
    told = names.explained.best(latent, note)
    if rejected:
        told = next((one for one in every if one.mark in note.rejected), None)
    if told is None:
        return [cell(UNKNOWN), cell(UNKNOWN)]
    text = html(
        '<span class="explained"><span class="{how}" title="{source}">{text}</span> '
        '<span class="sub">{model}{side}</span></span>',
        how="name" if told.mark in note.accepted else "name guess",
        source=told.source,
        text=told.text,
        model=part(told.model, "by"),
        side=EMPTY
        if told.side == "input"
        else html(", {s}", s=part("output", "side", "what it does")),
    )
    score = html('<span title="{by}">{s}</span>', by=told.verdict, s=cell(real(told.score)))
    return [text, score]


def _row(
    run: OpenRun, label: Html, address: LatentsAddress, latent: int, names: list[str]
) -> list[Html]:
    values = {name: float(run.columns[name][latent]) for name in names}
    shown = {
        "latent": anchor(address.visit("latent", latent=latent), latent),
        "f1": matched(run.known, latent),
        "density": cell(percent(values["density"])),
        "max": cell(activation(values["max"])),
        "mean": cell(activation(values["mean"])),
        "negative": cell(percent(values.get("negative", 0.0))),
    }
    first, *rest = (shown[name] for name in names)
    return [first, label, *rest]


def _label(note: Note, latent: int | None) -> Html:
    """The label; with a latent's number, an editable field."""
    bookmark = html(
        '<span class="star" title="bookmarked">{s}</span> ', s=part("yes", "bookmarked", "★")
    )
    star = bookmark if note.bookmark else EMPTY
    if latent is not None:
        return html(
            '<span class="labelled">{star}<input class="label" data-note="label" data-of="{n}" '
            'aria-label="Label of latent {n}" title="{note}" value="{label}" maxlength="{longest}" '
            'placeholder=" " autocomplete="off" dir="auto"></span>',
            star=star, n=latent, label=escaped(note.label), note=note.note,
            longest=LONGEST["label"],
        )  # fmt: skip
    return html(
        '{star}<span title="{note}">{label}</span>', star=star, label=note.label, note=note.note
    )


def latents_elsewhere(card: RunCard, _: LatentsAddress) -> Elsewhere:
    """The names of all latents, and their figures."""
    return Elsewhere(
        command("names", card.path, "--out", f"{card.own_name}-names.csv"),
        python(card, "from saelab import Features", "", "columns = Features.of($RUN).table()"),
    )


PAGE = Page(
    "All latents",
    LatentsAddress,
    latents_view,
    needs_features=True,
    asks="Which latents are there, and which match a word or a figure?",
    elsewhere=latents_elsewhere,
)

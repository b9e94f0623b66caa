"""All latents of a run as a table: sorted, searched, labelled, fifty at a time."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import streamlit as st
from jaxtyping import Int
from numpy import ndarray

from feature_browser.data.labels import Labels, Names, labels_of
from feature_browser.data.notes import LONGEST, Note, Notes
from feature_browser.data.reading import OpenRun
from feature_browser.draw import annotate
from feature_browser.draw.markup import EMPTY, Html, escaped, html, joined
from feature_browser.draw.numbers import UNKNOWN, activation, count, percent, real
from feature_browser.draw.tables import Column, cell, choice, link, metered, page_links, table
from feature_browser.pages.latents import latents_scatter
from feature_browser.pages.latents.latents_scatter import axes_of, toggle
from feature_browser.pages.latents.search import FIRING, search
from feature_browser.shell.canvas import go_to, here, show
from feature_browser.shell.chrome import alone
from feature_browser.shell.place import Place
from saelab.console import visible

ROWS = 50
SEARCH = "search-latents"
HELP = {
    "latent": "its number",
    "f1": "F1 of the known feature it matches best",
    "density": "share of tokens on which it fires",
    "max": "largest activation, without its sign",
    "mean": "mean activation when on, without its sign",
    "negative": "share of its firings below zero",
}


def latents_view(run: OpenRun, place: Place) -> None:
    """Draw the table that `place` asks for."""
    _search_box(run, place)
    names = Names(labels_of(run.card), run.known)
    hits = _found(run, names.labels, place)
    ordered = order(run, hits.latents, place.sort)
    pages = max(1, -(-len(ordered) // ROWS))
    page = min(place.page_number, pages)
    rows = ordered[(page - 1) * ROWS : page * ROWS]
    content = [
        _picture(run, place, hits) if axes_of(place) else EMPTY,
        _summary(run, place, hits),
        _table(run, names, place, rows) if len(rows) else _nothing(place),
        page_links(place, page, pages),
    ]
    page_html = html('<div class="page wide">{content}</div>', content=joined(content))
    if problem := annotate.problem():
        show(alone(html('<p class="notice">{p}</p>', p=problem)), "note-problem")
    show(page_html, "latents", on_edit=partial(annotate.keep, run.card, len(run.features)))


@dataclass(frozen=True)
class Hits:
    """The latents that a place's search and filter leave.

    Attributes:
        latents: those that never fire only if something is written of them, or if their number was
            asked for.
        reasons: how many were found by what.
        left_out: what was not looked through.
    """

    latents: Int[ndarray, " found"]
    reasons: dict[str, int] = field(default_factory=dict)
    left_out: str = ""


def _picture(run: OpenRun, place: Place, hits: Hits) -> Html:
    """Kept, since tens of thousands of latents take a second to draw."""

    def draw(run: OpenRun, place: Place) -> Html:
        listed = np.zeros(len(run.features), dtype=bool)
        listed[hits.latents] = True
        return latents_scatter.picture(run, place, listed)

    return run.page(place.to(page=1), draw)


def _found(run: OpenRun, labels: Labels, place: Place) -> Hits:
    alive = np.flatnonzero(run.columns["n_fired"])
    written = np.array([n for n in sorted(labels.notes) if n < len(run.features)], np.int64)
    listed = np.union1d(alive, written)
    if place.keep in {"labelled", "bookmarked"}:
        wanted = "bookmark" if place.keep == "bookmarked" else "label"
        kept = [n for n in written.tolist() if getattr(labels.notes[n], wanted)]
        listed = np.array(kept, np.int64)
    listed = _by_massive(run, place.keep, listed)
    clicked = latents_scatter.inside(run, place)
    if clicked is not None:
        listed = listed[clicked[listed]]
    if not place.q.strip():
        return Hits(listed)
    found, left_out = search(run, labels, place.q)
    if place.keep == "firing":
        found = {FIRING: found[FIRING]}
    listed = listed if place.keep or place.box else np.union1d(listed, found["number"])
    reasons = {why: len(np.intersect1d(latents, listed)) for why, latents in found.items()}
    every = np.unique(np.concatenate(list(found.values())))
    return Hits(np.intersect1d(every, listed), reasons, left_out)


def _by_massive(run: OpenRun, keep: str, listed: Int[ndarray, " found"]) -> Int[ndarray, " left"]:
    """Those that fire mostly on massive activations alone, or all others, if that is asked for."""
    kinds = run.features.massive
    if kinds is None or keep not in {"ordinary", "massive"}:
        return listed
    return listed[(kinds[listed] > 0) == (keep == "massive")]


def order(run: OpenRun, latents: Int[ndarray, " found"], sort: str) -> Int[ndarray, " found"]:
    """`latents` by the chosen column: numbers rising, everything else falling."""
    values = run.columns[sort][latents]
    return latents[np.argsort(values if sort == "latent" else -values, kind="stable")]


def _search_box(run: OpenRun, place: Place) -> None:
    if st.session_state.get(SEARCH, "").strip() != place.q.strip():
        st.session_state[SEARCH] = place.q
    with st.container(key="controls", horizontal=True):
        st.text_input(
            "Search numbers, labels, known features, tokens and example text",
            key=SEARCH,
            placeholder="Search a number, label, token or example text",
            on_change=_searched,
            label_visibility="collapsed",
            width=340,
        )
        parts = {"": "all", "labelled": "labelled", "bookmarked": "★ bookmarked"}
        n_massive = 0 if run.features.massive is None else int((run.features.massive > 0).sum())
        if n_massive or place.keep in {"ordinary", "massive"}:
            parts |= {"ordinary": "without massive", "massive": f"massive {count(n_massive)}"}
        if place.q.strip():
            parts["firing"] = "fires on the text"
        options = [
            (name, place.to(keep=part, page=1), part == place.keep) for part, name in parts.items()
        ]
        show(joined([choice("show", options), choice("", [toggle(place)])]), "context")


def _searched() -> None:
    place, text = here(), st.session_state[SEARCH]
    keep = "" if place.keep == "firing" and not text.strip() else place.keep
    go_to(place.to(q=text, keep=keep, page=1))


def _summary(run: OpenRun, place: Place, hits: Hits) -> Html:
    n, shown = len(run.features), len(hits.latents)
    if place.keep or place.box or place.q.strip():
        hidden = (
            f"hidden: {count(n - shown)} by {'the search' if place.q.strip() else 'the filter'}"
        )
    else:
        hidden = f"hidden: {count(n - shown)} that never fire"
    if place.keep == "ordinary":
        hidden += ", which leaves out latents that fire mostly on massive activations"
    if place.keep == "massive":
        hidden += "; shown are those that fire mostly on massive activations"
    why = ", ".join(f"{count(found)} by {by}" for by, found in hits.reasons.items() if found)
    told = [f"{count(shown)} of {count(n)} latents", hidden, *([f"found {why}"] if why else [])]
    if hits.left_out:
        told.append(hits.left_out)
    if place.box:
        told.append("one cell of the picture")
    undo = html(' · <a href="{h}">show all</a>', h=place.to(box="", page=1).href)
    return html(
        '<p class="sub summary">{told}{undo}</p>',
        told=" · ".join(told),
        undo=undo if place.box else EMPTY,
    )


def _nothing(place: Place) -> Html:
    if place.keep and not place.q.strip():
        text = "Nothing is written yet: on a latent's page, L labels it and B bookmarks it."
    else:
        text = "No latent is found by this search."
    if place.keep in {"ordinary", "massive"} and not place.q.strip():
        text = "No latent is of this kind."
    return html('<p class="sub">{t}</p>', t=text)


def _table(run: OpenRun, names: Names, place: Place, latents: Int[ndarray, " shown"]) -> Html:
    titles = {"latent": "Latent", "f1": "Known feature · F1", "density": "Density", "max": "Max",
              "mean": "Mean when on", "negative": "Negative side"}  # fmt: skip
    signed = bool(run.columns["n_negative"].any())
    shown = [name for name in titles if signed or name != "negative"]
    columns = [
        Column(
            titles[name],
            HELP[name],
            numeric=name not in {"latent", "f1"},
            sorted=name == place.sort,
            href=place.to(sort=name, page=1).href,
            rising=name == "latent",
        )
        for name in shown
    ]
    editable = not names.labels.problem and Notes(run.card.path).writable
    told = "what its readers call it; ★: bookmarked"
    columns.insert(1, Column("Label", f"{told}; click to write" if editable else told))
    columns.append(Column("Raises", "the tokens whose logits it raises most"))
    notes = names.labels
    rows = (
        _row(run, _label(notes.of(int(i)), int(i) if editable else None), place.to(latent=int(i)),
             shown)
        for i in latents
    )  # fmt: skip
    return table(columns, rows, "Latents")


def _row(run: OpenRun, label: Html, place: Place, names: list[str]) -> list[Html]:
    latent = int(place.latent or 0)
    values = {name: float(run.columns[name][latent]) for name in names}
    shown = {
        "latent": link(place.visit("latent").href, latent),
        "f1": _match(run, latent),
        "density": cell(percent(values["density"])),
        "max": cell(activation(values["max"])),
        "mean": cell(activation(values["mean"])),
        "negative": cell(percent(values.get("negative", 0.0))),
    }
    first, *rest = (shown[name] for name in names)
    return [first, label, *rest, _raised(run, latent)]


def _label(note: Note, latent: int | None) -> Html:
    """The label; a field to write it in if the latent's number is given."""
    star = html('<span class="star" title="bookmarked">★</span> ') if note.bookmark else EMPTY
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


def _match(run: OpenRun, latent: int) -> Html:
    match = run.known.matches.get(latent)
    if match is None:
        return html('<span class="sub">{none}</span>', none=UNKNOWN)
    return html(
        '<span class="name">{title}</span> {f1}',
        title=match.title,
        f1=metered(real(match.f1), match.f1),
    )


def _raised(run: OpenRun, latent: int) -> Html:
    file = run.features.file
    if "logits/top_tokens" not in file:
        return cell(UNKNOWN)
    tokens = file["logits/top_tokens"][latent][:4]
    return joined(html("<code>{t}</code> ", t=visible(file.token(int(t)))) for t in tokens)

"""All latents of a run as a table: sorted, searched, fifty at a time."""

import numpy as np
import streamlit as st
from jaxtyping import Int
from numpy import ndarray

from feature_browser.canvas import go_to, here, show
from feature_browser.markup import Html, html, joined
from feature_browser.numbers import UNKNOWN, activation, count, percent, real
from feature_browser.place import Place
from feature_browser.reading import OpenRun
from feature_browser.tables import Column, cell, link, metered, page_links, table
from feature_browser.tokens import visible

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
    _search_box(place)
    alive = np.flatnonzero(run.columns["n_fired"])
    found = np.intersect1d(run.find(place.q), alive) if place.q.strip() else alive
    ordered = order(run, found, place.sort)
    pages = max(1, -(-len(ordered) // ROWS))
    page = min(place.page_number, pages)
    rows = ordered[(page - 1) * ROWS : page * ROWS]
    content = [
        _summary(run, place, len(found), len(alive)),
        _table(run, place, rows),
        page_links(place, page, pages),
    ]
    show(html('<div class="page wide">{content}</div>', content=joined(content)), "latents")


def order(run: OpenRun, latents: Int[ndarray, " found"], sort: str) -> Int[ndarray, " found"]:
    """`latents` by the chosen column: numbers rising, everything else falling."""
    values = run.columns[sort][latents]
    return latents[np.argsort(values if sort == "latent" else -values, kind="stable")]


def _search_box(place: Place) -> None:
    st.session_state.setdefault(SEARCH, place.q)
    with st.container(key="controls", horizontal=True):
        st.text_input(
            "Search known features and tokens",
            key=SEARCH,
            placeholder="Search known features and tokens",
            on_change=_searched,
            label_visibility="collapsed",
            width=340,
        )


def _searched() -> None:
    go_to(here().to(q=st.session_state[SEARCH], page=1))


def _summary(run: OpenRun, place: Place, found: int, alive: int) -> Html:
    dead = len(run.features) - alive
    hidden = f"hidden: {count(dead)} that never fire"
    if place.q.strip():
        hidden += f", {count(alive - found)} by the search"
    return html(
        '<p class="sub summary">{found} of {all} latents · {hidden}</p>',
        found=count(found), all=count(len(run.features)), hidden=hidden,
    )  # fmt: skip


def _table(run: OpenRun, place: Place, latents: Int[ndarray, " shown"]) -> Html:
    titles = {"latent": "Latent", "f1": "Known feature · F1", "density": "Density", "max": "Max",
              "mean": "Mean when on", "negative": "Negative side"}  # fmt: skip
    signed = bool(run.columns["n_negative"].any())
    names = [name for name in titles if signed or name != "negative"]
    columns = [
        Column(
            titles[name],
            HELP[name],
            numeric=name not in {"latent", "f1"},
            sorted=name == place.sort,
            href=place.to(sort=name, page=1).href,
            rising=name == "latent",
        )
        for name in names
    ]
    columns.append(Column("Raises", "the tokens whose logits it raises most"))
    return table(columns, (_row(run, place, int(i), names) for i in latents), "Latents")


def _row(run: OpenRun, place: Place, latent: int, names: list[str]) -> list[Html]:
    values = {name: float(run.columns[name][latent]) for name in names}
    shown = {
        "latent": link(place.to(view="latent", latent=latent, q="", page=1).href, latent),
        "f1": _match(run, latent),
        "density": cell(percent(values["density"])),
        "max": cell(activation(values["max"])),
        "mean": cell(activation(values["mean"])),
        "negative": cell(percent(values.get("negative", 0.0))),
    }
    return [*(shown[name] for name in names), _raised(run, latent)]


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

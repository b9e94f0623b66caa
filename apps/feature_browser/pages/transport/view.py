"""Carried or computed: R² of every latent by a map from an earlier site."""

from pathlib import Path

import numpy as np
import streamlit as st
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from feature_browser.data.address import numbers_of
from feature_browser.data.catalogue import Catalogue, RunCard
from feature_browser.data.reading import OpenRun, open_run, stamp
from feature_browser.draw import scatter
from feature_browser.draw.boxes import alone, boxed, message
from feature_browser.draw.markup import Html, html, joined
from feature_browser.draw.numbers import UNKNOWN, count, percent, real
from feature_browser.draw.tables import (
    choice,
    page_of,
)
from feature_browser.pages import Page
from feature_browser.pages.transport.address import TransportAddress
from feature_browser.pages.transport.curves import model_box, pairs_box, ranks_box
from feature_browser.pages.transport.listing import SAID, counted, listing
from feature_browser.shell.canvas import change, search_field, show
from saelab.analysis.transport.records import (
    VERDICTS,
    SiteTransport,
    read_transport,
    transport_files,
)

ROWS = 25
SEARCH = "search-transport"
FLOOR = -1.0
"""R² below this is drawn there: how far it is below says little."""


def transport_view(_: Catalogue, card: RunCard, address: TransportAddress) -> None:
    """Draw the pair of sites that the address names, or how to measure one."""
    every = _transports(card)
    if not every:
        show(alone(_nothing(card)), "transport")
        return
    found = _chosen(every, address)
    if not len(found):
        maps = html("<div>{r}{m}</div>", r=ranks_box(found), m=model_box(found))
        content = [_maps_alone(found), pairs_box(every, found, address), maps]
        show(alone(joined(content)), "transport")
        return
    run = open_run(card) if card.features_path.is_file() else None
    _search_box(found, address)
    kept = keep(found, address, run)
    ordered = order(found, np.flatnonzero(kept), address.sort)
    part, links = page_of(address, len(ordered), ROWS)
    content = [
        _summary(found, address),
        html(
            '<div class="two wide-left"><div>{picture}{model}</div><div>{ranks}</div></div>',
            picture=_picture(found, address, kept),
            model=model_box(found),
            ranks=ranks_box(found),
        ),
        pairs_box(every, found, address),
        counted(found, address, len(ordered)),
        listing(found, address, ordered[part], (card, run)),
        links,
    ]
    show(alone(joined(content)), "transport")


def _transports(card: RunCard) -> list[SiteTransport]:
    """What the run has; a damaged file is told, as everywhere."""
    files = tuple(transport_files(card.path))
    return _read(files, tuple(map(stamp, files)))


@st.cache_resource(max_entries=8, show_spinner=False)
def _read(files: tuple[Path, ...], stamps: tuple[int, ...]) -> list[SiteTransport]:
    del stamps  # part of the cache's key only
    return [read_transport(path) for path in files]


def _chosen(every: list[SiteTransport], address: TransportAddress) -> SiteTransport:
    named = [one for one in every if one.path.stem == address.pair]
    return [*named, *(one for one in every if len(one)), *every][0]


def keep(
    found: SiteTransport, address: TransportAddress, run: OpenRun | None
) -> Bool[ndarray, " latent"]:
    """The latents that the address's filters keep: verdict, box, search."""
    verdict = found.verdict(float(address.limit))
    kept = verdict != VERDICTS.index("rare")
    if address.keep:
        kept = verdict == VERDICTS.index(address.keep)
    if box := numbers_of(address.box):
        left, right, bottom, top = box
        x, y = _across(found), _up(found)
        kept = kept & (x >= left) & (x <= right) & (y >= bottom) & (y <= top)
    if text := address.q.strip():
        hits = np.zeros(len(found), dtype=bool)
        if run is not None:
            named = run.find(text)
            hits[named[named < len(found)]] = True
        if text.isdecimal() and len(text) < 10 and int(text) < len(found):
            hits[int(text)] = True
        kept = kept & hits
    return kept


def order(
    found: SiteTransport, latents: Int[ndarray, " found"], sort: str
) -> Int[ndarray, " found"]:
    """`latents` sorted by the chosen column: numbers ascending, others descending."""
    if sort == "latent":
        return latents
    values = np.asarray(getattr(found, sort), dtype=np.float64)[latents]
    return latents[np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")]


def _across(found: SiteTransport) -> Float[ndarray, " latent"]:
    return np.log10(np.maximum(found.n_fired, 1).astype(np.float64))


def _up(found: SiteTransport) -> Float[ndarray, " latent"]:
    return np.maximum(found.best.astype(np.float64), FLOOR)


def _nothing(card: RunCard) -> Html:
    text = (
        "A latent is carried if a linear map from an earlier site predicts what its direction "
        "reads on the tokens where it fires, and computed between the sites if none does. The "
        "store must have both sites."
    )
    layer = "blocks.N.hook_resid_post"
    command = f"saelab transport --run {card.path.as_posix()} --from {layer}"
    return message("Transport was not measured", text, command=command)


def _maps_alone(found: SiteTransport) -> Html:
    return html(
        '<h1 class="headline">{a} to {b}</h1><p class="sub">The run\'s latents are of another '
        "site, so only maps were measured here.</p>",
        a=found.earlier, b=found.later,
    )  # fmt: skip


def _search_box(found: SiteTransport, address: TransportAddress) -> None:
    with st.container(key="controls", horizontal=True):
        search_field(
            SEARCH,
            address.q,
            label="Search latents by number, label, known feature or token",
            hint="Search a number or a token",
            width=260,
            on_change=_searched,
        )
        limit = float(address.limit)
        shown = [("all", address.to(keep="", page=1), not address.keep)]
        shown += [
            (f"{SAID[name]} {count(found.count(name, limit))}", address.to(keep=name, page=1),
             name == address.keep)
            for name in VERDICTS
        ]  # fmt: skip
        limits = [
            (text, address.to(limit=text, page=1), text == address.limit)
            for text in ("0.25", "0.5", "0.75", "0.9")
        ]
        show(joined([choice("show", shown), choice("carried from R²", limits)]), "context")


def _searched() -> None:
    change(TransportAddress, lambda now: now.to(q=st.session_state[SEARCH], page=1))


def _summary(found: SiteTransport, address: TransportAddress) -> Html:
    limit, facts = float(address.limit), found.facts
    measured = len(found) - found.count("rare", limit)
    chance = float(np.nanmean(found.direction >= limit)) if measured else 0.0
    same = np.isfinite(found.identity)
    unchanged = float((found.identity[same] >= limit).mean()) if same.any() else None
    text = (
        f"A map fitted on other {facts.get('apart', 'documents')} predicts what their directions "
        f"read where they fire with R² of at least {address.limit}; "
        f"{count(found.count('computed', limit))} are computed between the sites. Random "
        f"directions reach that on {percent(chance)} of the latents' tokens"
    )
    if unchanged is not None:
        text += f", the unchanged activation on {percent(unchanged)}"
    return html(
        '<h1 class="headline">Carried or computed? {n} of {all} latents are carried</h1>'
        '<p class="sub">From {a} to {b}. {text}. {rows} rows; {out} were left out: special tokens '
        "and massive activations.</p>",
        n=count(found.count("carried", limit)), all=count(measured), a=found.earlier,
        b=found.later, text=text, rows=_number(facts.get("n_rows")),
        out=_number(facts.get("n_left_out")),
    )  # fmt: skip


def _number(value: object) -> str:
    return count(value) if isinstance(value, int) else UNKNOWN


def _picture(
    found: SiteTransport, address: TransportAddress, kept: Bool[ndarray, " latent"]
) -> Html:
    known = np.flatnonzero(np.isfinite(found.best))
    if not len(known):
        return boxed("R² against firing", html('<p class="sub">All latents are too rare.</p>'))
    x, y, limit = _across(found)[known], _up(found)[known], float(address.limit)
    carried = found.verdict(limit)[known] == VERDICTS.index("carried")
    points = scatter.Points(x, y, ~carried, kept[known])
    axes = scatter.Axes(
        "tokens on which it fires, log10",
        f"R² on these tokens · {FLOOR:g}: or less",
        (float(x.min()) - 0.1, float(x.max()) + 0.1),
        (FLOOR - 0.06, 1.04),
    )

    def lead(members: ndarray, box: tuple[float, float, float, float]) -> tuple[str, str]:
        if len(members) == 1:
            latent = int(known[members[0]])
            return address.visit("latent", latent=latent), _tip(found, latent)
        corners = ",".join(f"{edge:.5g}" for edge in box)
        there = address.to(box=corners, page=1).href
        return there, f"{count(len(members))} here · click to list them"

    picture = scatter.scatter(points, axes, lead, _limit(limit, axes))
    hint = "● carried · ◆ not, or undecided · larger marks stand for several"
    return boxed("R² against how often a latent fires", picture, hint=hint)


def _limit(limit: float, axes: scatter.Axes) -> Html:
    return html(
        '<line class="limit" x1="{l}" x2="{r}" y1="{y}" y2="{y}"/>',
        y=f"{scatter.place_y(limit, axes):.1f}", l=scatter.LEFT, r=scatter.WIDTH - 8,
    )  # fmt: skip


def _tip(found: SiteTransport, latent: int) -> str:
    return (
        f"{latent}   R² {real(float(found.best[latent]), 3)}\n"
        f"identity {real(float(found.identity[latent]))}   another latent "
        f"{real(float(found.other[latent]))}\nfires on {count(int(found.n_fired[latent]))} tokens"
    )


PAGE = Page(
    "Transport",
    TransportAddress,
    transport_view,
    asks="Do latents of one layer say the same at another?",
)

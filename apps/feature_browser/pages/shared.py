"""The Shared page: which latents of a crosscoder its sites or models share."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import streamlit as st
from jaxtyping import Int
from numpy import ndarray

from feature_browser.data.address import AbstractAddress, is_number, parameter
from feature_browser.data.catalogue import Catalogue, RunCard
from feature_browser.data.labels import LatentNames
from feature_browser.data.reading import stamp
from feature_browser.draw.boxes import alone, message
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.names import named
from feature_browser.draw.numbers import count, real
from feature_browser.draw.tables import Column, anchor, cell, choice, page_of, sortable, table
from feature_browser.pages import Page
from feature_browser.shell.canvas import palette, plot, show
from saelab.analysis.sharing.records import FILE, Sharing, load_sharing
from saelab.figures.sharing import sharing_figure

ROWS = 50
HEADS = {
    "latent": ("Latent", "its number"),
    "fires": ("Fires on", "tokens held back from training"),
    "norm": ("Norms", "of its decoder row at each site; they sum to 1"),
    "error": ("Error", "latent scaling: how much it is wanted at another site; genuine below 0.2"),
    "whole": ("Whole", "latent scaling: how much others do its work there; genuine below 0.5"),
    "name": ("What it fires on", ""),
}
UNSORTED = ("norm", "name")


@dataclass(frozen=True, kw_only=True)
class SharedAddress(AbstractAddress):
    """Which latents are listed.

    Attributes:
        kind: `shared`, `between`, or the number of the site to which they are specific.
        sort: the column by which they are sorted.
    """

    view = "shared"
    kind: str = parameter("0", lambda text: text in ("shared", "between") or is_number(text, 3))
    sort: str = parameter("fires", lambda text: text in HEADS and text not in UNSORTED)
    page: str = parameter("1", lambda text: is_number(text, 6) and int(text) > 0)


def shared_view(_: Catalogue, card: RunCard, address: SharedAddress) -> None:
    """Draw the numbers of latents, their norms, and a list of those of one kind."""
    path = card.path / FILE
    if not path.is_file():
        show(alone(_nothing(card)), "shared")
        return
    found = _read(card.path, stamp(path))
    show(_summary(found), "shared-summary")
    plot(sharing_figure(found, palette()), "sharing")
    show(_list(card, found, address), "shared-list")


@st.cache_resource(max_entries=8, show_spinner=False)
def _read(run: Path, stamp: int) -> Sharing:
    del stamp  # part of the cache's key only
    return load_sharing(run)


def _nothing(card: RunCard) -> Html:
    if card.variant == "crosscoder":
        text = "It was not measured yet which latents this crosscoder's sites share."
        return message("No shares", text, command=f"saelab diff {card.path.as_posix()}")
    return message(
        "One site",
        "A crosscoder reads several sites, or one site of several models, with one set of latents. "
        f"This {card.variant} SAE reads one.",
        command="saelab train crosscoder --activations STORE --beside OTHER --site SITE ...",
    )


def _summary(found: Sharing) -> Html:
    facts = found.summary()
    rows = joined(
        html(
            "<li><b>{n}</b> only in {site}, {genuine} of them genuine; its FVU is {fvu}</li>",
            n=count(row["specific"]), site=row["site"], genuine=count(row["genuine"]),
            fvu=real(row["fvu"], 4),
        )
        for row in facts["sites"]
    )  # fmt: skip
    return html(
        '<div class="page wide"><h1 class="headline">{shared} latents are shared by {n} sites</h1>'
        '<ul class="found">{rows}</ul><p class="sub">{between} are between; {silent} are silent on '
        "{tokens} tokens. A specific latent is genuine if the data agree (latent scaling): at no "
        "other site would it repair much of the error, or do what other latents do there.</p>"
        "</div>",
        shared=count(facts["shared"]), n=len(found.sites), rows=rows,
        between=count(facts["between"]), silent=count(facts["silent"]),
        tokens=count(facts["n_rows"]),
    )  # fmt: skip


def _chosen(found: Sharing, of: str) -> Int[ndarray, " n"]:
    """The latents of this kind that fire."""
    alive = found.n_fired > 0
    specific = [found.specific(site) for site in range(len(found.sites))]
    kinds = {str(site): which for site, which in enumerate(specific)}
    kinds |= {"shared": found.shared, "between": ~found.shared & ~np.any(specific, axis=0)}
    return np.flatnonzero(kinds.get(of, np.zeros(len(found), bool)) & alive)


def _list(card: RunCard, found: Sharing, address: SharedAddress) -> Html:
    latents = _chosen(found, address.kind)
    keys = {
        "latent": latents,
        "fires": -found.n_fired[latents],
        "error": -np.nan_to_num(found.error_ratio[latents], nan=-np.inf),
        "whole": -np.nan_to_num(found.whole_ratio[latents], nan=-np.inf),
    }
    latents = latents[np.argsort(keys[address.sort], kind="stable")]
    kinds = [(f"only {site}", str(i)) for i, site in enumerate(found.sites)]
    kinds += [("shared", "shared"), ("between", "between")]
    options = [(name, address.to(kind=of, page=1), of == address.kind) for name, of in kinds]
    span, links = page_of(address, len(latents), ROWS)
    names = LatentNames.of(card)
    rows = [_row(found, names, address, latent) for latent in latents[span].tolist()]
    columns = [
        Column(column.title, column.help, column.numeric, "" if name in UNSORTED else column.href,
               column.sorted)
        for name, column in zip(HEADS, sortable(HEADS, address, words=("latent", "name", "norm")),
                                strict=True)
    ]  # fmt: skip
    none = html('<p class="sub">There are none.</p>') if not rows else EMPTY
    return alone(
        joined([choice("latents", options), none or table(columns, rows, "Latents by site"), links])
    )


def _row(found: Sharing, names: LatentNames, address: SharedAddress, latent: int) -> list[Html]:
    norms = joined(
        html(
            '<data class="share" data-tip="{site}: {v}" value="{exact}" data-column="{site}">'
            '<i style="width:{w}%"></i></data>',
            site=site, v=real(norm), w=f"{100 * norm:.0f}", exact=Html(f"{norm:.9g}"),
        )
        for site, norm in zip(found.sites, found.norm[latent].tolist(), strict=True)
    )  # fmt: skip
    return [
        anchor(address.visit("latent", latent=latent), latent),
        cell(count(int(found.n_fired[latent]))),
        html('<span class="shares">{norms}</span>', norms=norms),
        cell(real(float(found.error_ratio[latent]))),
        cell(real(float(found.whole_ratio[latent]))),
        named(names.best(latent)),
    ]


PAGE = Page(
    "Shared",
    SharedAddress,
    shared_view,
    concerns=lambda card: card.variant == "crosscoder",
    asks="Which latents of a crosscoder do its models share, and which are one's own?",
)

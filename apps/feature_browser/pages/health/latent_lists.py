"""Lists of a run's dead, dense, duplicate and massive latents, with links."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from feature_browser.data.address import AbstractAddress, one_of, page_number
from feature_browser.data.reading import OpenRun
from feature_browser.draw.markup import EMPTY, Html, html, joined
from feature_browser.draw.numbers import UNKNOWN, activation, count, percent, real
from feature_browser.draw.tables import (
    Column,
    anchor,
    cell,
    choice,
    matched,
    metered,
    page_of,
    table,
)
from feature_browser.pages.health.densities import Densities, Twins
from saelab.analysis.records import MASSIVE

ROWS = 20
DEAD_ROWS = 120


@dataclass(frozen=True, kw_only=True)
class HealthAddress(AbstractAddress):
    """Which latents are listed: those of a kind, else of the first kind that has some.

    Attributes:
        part: whether all that was measured is shown, too.
    """

    view = "health"
    keep: str = one_of("", "dead", "dense", "duplicate", "massive")
    page: str = page_number()
    part: str = one_of("", "measured")


def lists(
    found: Densities, pairs: Twins | None, run: OpenRun | None, address: HealthAddress
) -> Html:
    """One of the four lists: that of the address, else the first that is not empty."""
    massive = massive_latents(run)
    sizes = {
        "dead": len(found.dead),
        "dense": len(found.dense),
        "duplicate": 0 if pairs is None else len(pairs.latent),
        "massive": len(massive),
    }
    kind = address.keep or next((kind for kind, n in sizes.items() if n), "dead")
    options = [
        (f"{name} {count(n)}", address.to(keep=name, page=1), name == kind)
        for name, n in sizes.items()
    ]
    size = DEAD_ROWS if kind == "dead" else ROWS
    part, links = page_of(address, sizes[kind], size)
    if not sizes[kind]:
        body = _none(kind, known=_known(kind, pairs, run))
    elif kind == "massive" and run is not None:
        body = _massive(massive, found, run, address, part)
    elif kind == "dead":
        body = _dead(found, address, part)
    elif kind == "dense" or pairs is None:
        body = _dense(found, run, address, part)
    else:
        body = _alike(pairs, found, address, part)
    return html(
        '<section class="card"><header class="spread"><h2>Which latents?</h2>{choice}</header>'
        "{body}{pages}</section>",
        choice=choice("show", options), body=body, pages=links,
    )  # fmt: skip


def _known(kind: str, pairs: Twins | None, run: OpenRun | None) -> bool:
    if kind == "massive":
        return run is not None and run.features.massive is not None
    return kind != "duplicate" or pairs is not None


def massive_latents(run: OpenRun | None) -> Int[ndarray, " found"]:
    """The latents that fire only or mostly on massive activations, sorted by that share."""
    if run is None or run.features.massive is None:
        return np.zeros(0, np.int64)
    found = np.flatnonzero(run.features.massive)
    share = run.columns["massive"][found]
    return found[np.lexsort((-share, -run.features.massive[found].astype(int)))]


def _none(kind: str, *, known: bool) -> Html:
    text = f"There is no {kind} latent." if known else "Unknown without features.h5."
    if kind == "massive" and known:
        text = "No latent fires mostly on massive activations."
    elif kind == "massive":
        text = (
            "Unknown: features.h5 does not say which rows are massive activations; run saelab "
            "features again, with the store of activations in its place."
        )
    return html('<p class="sub">{text}</p>', text=text)


def _link(address: HealthAddress, latent: int) -> Html:
    return anchor(address.visit("latent", latent=latent), latent)


def _dead(found: Densities, address: HealthAddress, part: slice) -> Html:
    links = joined(html("{a} ", a=_link(address, int(i))) for i in found.dead[part])
    return html('<p class="numbers">{links}</p>', links=links)


def _dense(found: Densities, run: OpenRun | None, address: HealthAddress, part: slice) -> Html:
    columns = [
        Column("Latent"),
        Column("Density", "share of tokens on which it fires", numeric=True),
        Column("Mean when on", "mean activation, without its sign", numeric=True),
        Column("Known feature · F1", "the known feature it matches best"),
    ]
    rows = []
    for latent in map(int, found.dense[part]):
        density = float(found.density[latent])
        mean = UNKNOWN if run is None else activation(float(run.columns["mean"][latent]))
        rows.append(
            [
                _link(address, latent),
                metered(percent(density), density),
                cell(mean),
                matched(None if run is None else run.known, latent),
            ]
        )
    return table(columns, rows, "Dense latents")


def _massive(
    latents: Int[ndarray, " found"],
    found: Densities,
    run: OpenRun,
    address: HealthAddress,
    part: slice,
) -> Html:
    columns = [
        Column("Latent"),
        Column("Fires on massive activations"),
        Column("Share of its firings", "on massive activations", numeric=True),
        Column("Density", "share of tokens on which it fires", numeric=True),
        Column("Max", "largest activation, without its sign", numeric=True),
    ]
    assert run.features.massive is not None
    rows = [
        [
            _link(address, latent),
            cell(MASSIVE[run.features.massive[latent]]),
            metered(percent(share := float(run.columns["massive"][latent])), share),
            cell(percent(float(found.density[latent]))),
            cell(activation(float(run.columns["max"][latent]))),
        ]
        for latent in map(int, latents[part])
    ]
    return table(columns, rows, "Latents that fire on massive activations")


def _alike(pairs: Twins, found: Densities, address: HealthAddress, part: slice) -> Html:
    columns = [
        Column("Latent"),
        Column("Its duplicate"),
        Column("Cosine", "of the two decoder rows", numeric=True),
        Column("Density", "share of tokens on which the first fires", numeric=True),
        Column("Of the duplicate", numeric=True),
    ]
    rows = [
        [
            _link(address, int(latent)),
            _link(address, int(other)),
            cell(real(float(cosine), 3)),
            cell(percent(float(found.density[latent]))),
            cell(percent(float(found.density[other]))),
        ]
        for latent, other, cosine in zip(
            pairs.latent[part], pairs.other[part], pairs.cosine[part], strict=True
        )
    ]
    return table(columns, rows, "Duplicate latents") if rows else EMPTY

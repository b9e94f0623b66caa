"""The table of latents, each with its verdict and what it is compared with."""

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from feature_browser.data.catalogue import RunCard
from feature_browser.data.labels import LatentNames
from feature_browser.data.reading import OpenRun
from feature_browser.draw.markup import EMPTY, Html, html
from feature_browser.draw.names import named
from feature_browser.draw.numbers import UNKNOWN, count, real
from feature_browser.draw.tables import (
    Column,
    anchor,
    cell,
    metered,
    part,
    raised,
    sortable,
    table,
)
from feature_browser.pages.transport.address import TransportAddress
from saelab.analysis.transport.records import VERDICTS, SiteTransport

SAID = {
    "carried": "carried",
    "computed": "computed between",
    "undecided": "undecided",
    "rare": "too rare",
}


def counted(found: SiteTransport, address: TransportAddress, shown: int) -> Html:
    """How many latents are listed, and the way back to all."""
    hidden = len(found) - shown
    away = address.fresh(pair=address.pair, limit=address.limit, sort=address.sort)
    narrowed = address.keep or address.box or address.q.strip()
    undo = html(' · <a href="{h}">show all</a>', h=away.href) if narrowed else EMPTY
    boxed_in = " · one cell of the picture" if address.box else ""
    return html(
        '<p class="sub summary">{n} of {all} latents · hidden: {hidden}{box}{undo}</p>',
        n=count(shown), all=count(len(found)), hidden=count(hidden), box=boxed_in, undo=undo,
    )  # fmt: skip


HEADS = {
    "latent": ("Latent", "its number"),
    "best": ("R²", "of the map at full rank, on the tokens where it fires; 95 % interval"),
    "identity": ("Identity", "R² of the earlier activation, unchanged but for the mean"),
    "other": ("Another latent", "R² along another latent's direction, on the same tokens"),
    "direction": ("Random", "R² along a random direction, on the same tokens"),
    "everywhere": ("All tokens", "R² along its direction on all tokens"),
    "n_fired": ("Fires on", "tokens"),
}


def listing(
    found: SiteTransport,
    address: TransportAddress,
    latents: Int[ndarray, " shown"],
    source: tuple[RunCard, OpenRun | None],
) -> Html:
    """The table of these latents of a run, with what its features say of them."""
    if not len(latents):
        return html('<p class="sub">No latent passes these filters.</p>')
    columns = sortable(HEADS, address)
    columns.insert(1, Column("Verdict", f"whole interval from {address.limit} on, or below"))
    columns.insert(1, Column("Name", "its label, or who else names it and how well"))
    columns.append(Column("Raises", "the tokens whose logits it raises most"))
    card, run = source
    names, verdict = LatentNames.of(card), found.verdict(float(address.limit))
    rows = (
        [
            anchor(address.visit("latent", latent=int(i)), int(i)),
            named(names.best(int(i))),
            _verdict(VERDICTS[verdict[i]]),
            _r2(found, int(i)),
            *(cell(real(float(getattr(found, name)[i]))) for name in list(HEADS)[2:-1]),
            cell(count(int(found.n_fired[i]))),
            cell(UNKNOWN) if run is None else raised(run, int(i)),
        ]
        for i in latents
    )
    return table(columns, rows, "Latents by how well they are carried")


def _verdict(name: str) -> Html:
    kind = {"carried": "pos", "computed": "neg"}.get(name, "")
    mark = {"carried": "●", "computed": "◆"}.get(name, "")
    return html(
        '<span class="verdict {kind}"><i aria-hidden="true">{mark}</i> {text}</span>',
        kind=kind, mark=mark, text=SAID[name],
    )  # fmt: skip


def _r2(found: SiteTransport, latent: int) -> Html:
    value = float(found.best[latent])
    if not np.isfinite(value):
        return html('<span class="sub" title="it fires on too few tokens">{t}</span>', t=UNKNOWN)
    low, high = (real(float(ends[latent])) for ends in (found.low, found.high))
    ends = html("{low} to {high}", low=part(low, "low"), high=part(high, "high"))
    return html(
        '{bar} <span class="sub">{ends}</span>', bar=metered(real(value, 3), value), ends=ends
    )

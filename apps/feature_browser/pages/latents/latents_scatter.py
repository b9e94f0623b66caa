"""Any two figures of all latents as a scatter plot; marks link to one latent or to a list."""

import numpy as np
import streamlit as st
from jaxtyping import Bool, Float
from numpy import ndarray

from feature_browser.data.address import numbers_of
from feature_browser.data.catalogue import RunCard
from feature_browser.data.labels import LatentNames
from feature_browser.data.reading import OpenRun, readable_scores, stamp
from feature_browser.draw import scatter
from feature_browser.draw.boxes import boxed
from feature_browser.draw.markup import EMPTY, Html, html
from feature_browser.draw.numbers import count, real
from feature_browser.draw.tables import choice
from feature_browser.pages.latents.address import LatentsAddress
from saelab.analysis.steering.records import steering_path

COLUMNS = {
    "density": "density, log10",
    "max": "maximum, log10",
    "mean": "mean when on, log10",
    "f1": "F1 of the known feature",
    "negative": "share below zero",
    "output": "output score",
    "input": "input score",
}
LOGARITHMIC = {"density", "max", "mean"}


def axes_of(address: LatentsAddress) -> tuple[str, str] | None:
    """The two figures that the address names; None for anything invalid."""
    names = address.axes.split(",")
    return (names[0], names[1]) if len(names) == 2 and set(names) <= set(COLUMNS) else None


def inside(run: OpenRun, address: LatentsAddress) -> Bool[ndarray, " latent"] | None:
    """The latents in the clicked cell; None if there is none."""
    names, box = axes_of(address), numbers_of(address.box)
    if names is None or box is None:
        return None
    left, right, bottom, top = box
    x, y = (_values(run, name) for name in names)
    return (x >= left) & (x <= right) & (y >= bottom) & (y <= top)


def picture(run: OpenRun, address: LatentsAddress, listed: Bool[ndarray, " latent"]) -> Html:
    """Links for choosing two figures, and the picture once they are chosen."""
    names = axes_of(address)
    if names is None:
        return EMPTY
    known = [name for name in COLUMNS if np.isfinite(_values(run, name)).any()]
    across, up = names
    pick = [
        choice(title, [(COLUMNS[n], _with(address, pair(n)), n == now) for n in known])
        for title, now, pair in (
            ("across", across, lambda n: (n, up)),
            ("up", up, lambda n: (across, n)),
        )
    ]
    x, y = _values(run, across), _values(run, up)
    finite = np.isfinite(x) & np.isfinite(y)
    if not finite.any():
        body = html('<p class="sub">No latent has both figures.</p>')
    else:
        body = _drawn(run, address, (x, y), (finite, listed))
    missing = int((~finite).sum())
    hint = (
        f"{count(int(finite.sum()))} latents; {count(missing)} lack one of the figures · larger "
        "marks stand for several"
    )
    content = html('{a}{b}<div class="medium">{c}</div>', a=pick[0], b=pick[1], c=body)
    return boxed("Two figures of every latent", content, hint=hint)


def toggle(address: LatentsAddress) -> tuple[str, LatentsAddress, bool]:
    """The link that opens or closes the picture."""
    there = (
        _with(address, ("density", "max"))
        if axes_of(address) is None
        else address.to(axes="", box="")
    )
    return ("picture", there, axes_of(address) is not None)


def _with(address: LatentsAddress, names: tuple[str, str]) -> LatentsAddress:
    return address.to(axes=",".join(names), box="", page=1)


def _drawn(
    run: OpenRun,
    address: LatentsAddress,
    values: tuple[Float[ndarray, " latent"], Float[ndarray, " latent"]],
    masks: tuple[Bool[ndarray, " latent"], Bool[ndarray, " latent"]],
) -> Html:
    (x, y), (finite, listed) = values, masks
    rows, names = np.flatnonzero(finite), LatentNames.of(run.card)
    chosen = axes_of(address) or ("density", "max")
    axes = scatter.Axes(
        COLUMNS[chosen[0]], COLUMNS[chosen[1]], _range(x[finite]), _range(y[finite])
    )
    nothing = np.zeros(len(rows), dtype=bool)
    points = scatter.Points(x[finite], y[finite], nothing, listed[finite])

    def lead(found: ndarray, box: tuple[float, float, float, float]) -> tuple[str, str]:
        if len(found) == 1:
            latent = int(rows[found[0]])
            there = address.visit("latent", latent=latent)
            return there, f"{latent}  {names.name(latent)}\n{_told(run, latent, chosen)}"
        corners = ",".join(f"{edge:.6g}" for edge in box)
        return address.to(
            box=corners, page=1
        ).href, f"{count(len(found))} here · click to list them"

    return scatter.scatter(points, axes, lead)


def _told(run: OpenRun, latent: int, names: tuple[str, str]) -> str:
    return "   ".join(
        f"{COLUMNS[name]} {real(float(_values(run, name)[latent]))}" for name in names
    )


def _range(values: Float[ndarray, " point"]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    room = 0.03 * (high - low) or 0.5
    return low - room, high + room


def _values(run: OpenRun, name: str) -> Float[ndarray, " latent"]:
    """A figure of every latent; NaN for latents without it."""
    if name in {"output", "input"}:
        return _score(run.card, stamp(steering_path(run.card.path)), name, len(run.features))
    values = np.asarray(run.columns[name], np.float64)
    if name not in LOGARITHMIC:
        measured = run.known.matches if name == "f1" else values.any()
        return values if measured else np.full(len(values), np.nan)
    with np.errstate(divide="ignore"):
        logs = np.log10(values)
    return np.where(np.isfinite(logs), logs, np.nan)


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs={RunCard: repr})
def _score(card: RunCard, stamp: int, name: str, n: int) -> Float[ndarray, " latent"]:
    """The better of both poles' scores."""
    del stamp  # part of the cache's key only
    values = np.full(n, np.nan)
    scores = readable_scores(card)
    if scores is None or (len(scores) and int(scores.latent.max()) >= n):
        return values
    np.fmax.at(values, scores.latent, getattr(scores, name))
    return values

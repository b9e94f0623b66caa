"""Which latents the table of all latents lists, and in which order."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from feature_browser.data.labels import LatentNames
from feature_browser.data.reading import OpenRun
from feature_browser.pages.latents import latents_scatter
from feature_browser.pages.latents.address import LatentsAddress
from feature_browser.pages.latents.search import FIRING, search

NOTED = {
    "labelled": "label",
    "bookmarked": "bookmark",
    "accepted": "accepted",
    "rejected": "rejected",
}
"""The filters by what readers have written, and the field that must not be empty."""


@dataclass(frozen=True)
class Hits:
    """The latents that the address's search and filter keep.

    Attributes:
        latents: silent latents are included only if they have notes, or if their number was
            searched.
        reasons: the number found, by reason.
        left_out: what was not searched.
    """

    latents: Int[ndarray, " found"]
    reasons: dict[str, int] = field(default_factory=dict)
    left_out: str = ""


def hits_of(run: OpenRun, names: LatentNames, address: LatentsAddress) -> Hits:
    """What the search, the filter and the clicked cell of the picture leave together."""
    labels = names.labels
    alive = np.flatnonzero(run.columns["n_fired"])
    written = np.array([n for n in sorted(labels.notes) if n < len(run.features)], np.int64)
    listed = np.union1d(alive, written)
    if wanted := NOTED.get(address.keep):
        kept = [n for n in written.tolist() if getattr(labels.notes[n], wanted)]
        listed = np.array(kept, np.int64)
    if address.keep == "explained":
        listed = np.intersect1d(listed, np.array([*names.explained.by_latent], np.int64))
    listed = _by_massive(run, address.keep, listed)
    clicked = latents_scatter.inside(run, address)
    if clicked is not None:
        listed = listed[clicked[listed]]
    if not address.q.strip():
        return Hits(listed)
    found, left_out = search(run, labels, address.q)
    if address.keep == "firing":
        found = {FIRING: found[FIRING]}
    listed = listed if address.keep or address.box else np.union1d(listed, found["number"])
    reasons = {why: len(np.intersect1d(latents, listed)) for why, latents in found.items()}
    every = np.unique(np.concatenate(list(found.values())))
    return Hits(np.intersect1d(every, listed), reasons, left_out)


def _by_massive(run: OpenRun, keep: str, listed: Int[ndarray, " found"]) -> Int[ndarray, " left"]:
    """Only latents that fire mostly on massive activations, or only the others, if asked for."""
    kinds = run.features.massive
    if kinds is None or keep not in {"ordinary", "massive"}:
        return listed
    return listed[(kinds[listed] > 0) == (keep == "massive")]


def order(
    run: OpenRun, latents: Int[ndarray, " found"], sort: str, names: LatentNames
) -> Int[ndarray, " found"]:
    """`latents` sorted by the chosen column: numbers ascending, everything else descending."""
    if sort == "score":
        told = [names.explained.best(n, names.labels.of(n)) for n in latents.tolist()]
        scores = [-1.0 if t is None else -0.5 if t.score is None else t.score for t in told]
        values = np.array(scores)
    else:
        values = run.columns[sort][latents]
    return latents[np.argsort(values if sort == "latent" else -values, kind="stable")]

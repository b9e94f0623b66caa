"""Every latent as a detector of every label, exactly and from the sparse codes alone.

A latent's positive and negative firings are two detectors (signed codes use both poles). All
events are sorted once by (detector, falling magnitude); what a threshold would catch is then a
running sum, and tokens on which a detector is silent enter as one tie at zero. The cost is
events x labels, not tokens x latents x labels.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from saelab.types import SparseCodes


@dataclass(frozen=True)
class DetectorFirings:
    """The firings of all detectors, sorted by detector and falling magnitude.

    Attributes:
        row: which token fired.
        magnitude: |value| of the firing.
        starts: where each occurring detector's events begin.
        detectors: which detector each of `starts` belongs to: the latent, plus d_sae if negative.
        group_ends: the last event of every run of equal magnitude within a detector.
        group_owner: for each group, the position of its detector in `detectors`.
    """

    row: Int[ndarray, " event"]
    magnitude: Float[ndarray, " event"]
    starts: Int[ndarray, " detector"]
    detectors: Int[ndarray, " detector"]
    group_ends: Int[ndarray, " group"]
    group_owner: Int[ndarray, " group"]
    n_rows: int
    d_sae: int

    def latent(self, position: int) -> tuple[int, int]:
        """The latent of the detector at `position`, and the sign of the firings it stands for."""
        detector = int(self.detectors[position])
        return detector % self.d_sae, 1 if detector < self.d_sae else -1


def sort_events(codes: SparseCodes) -> DetectorFirings:
    """The events of `codes`; rows keep their numbers."""
    row, slot = np.nonzero(codes.active.cpu().numpy())
    value = codes.values.cpu().numpy()[row, slot].astype(np.float64)
    detector = codes.indices.cpu().numpy()[row, slot] + codes.d_sae * (value < 0)
    magnitude = np.abs(value)
    order = np.lexsort((-magnitude, detector))
    row, magnitude, detector = row[order], magnitude[order], detector[order]
    last = len(row)
    new_detector = np.flatnonzero(np.diff(detector, prepend=-1))
    changes = (np.diff(detector) != 0) | (np.diff(magnitude) != 0)
    group_ends = np.append(np.flatnonzero(changes), last - 1) if last else np.zeros(0, dtype=int)
    owner = np.searchsorted(new_detector, group_ends, side="right") - 1
    return DetectorFirings(
        row,
        magnitude,
        new_detector,
        detector[new_detector],
        group_ends,
        owner,
        len(codes),
        codes.d_sae,
    )


@dataclass(frozen=True)
class Scores:
    """For one label, every occurring detector's best F1 with its threshold, and its AUROC."""

    f1: Float[ndarray, " detector"]
    threshold: Float[ndarray, " detector"]
    auroc: Float[ndarray, " detector"]


def score_label(events: DetectorFirings, label: Bool[ndarray, " row"]) -> Scores:
    """How well each detector finds the rows where `label` holds.

    F1 is the best over all thresholds (the detector answers yes at or above it). AUROC counts
    ties, silence among them, as one half.
    """
    n_positive = int(label.sum())
    n_negative = events.n_rows - n_positive
    hit = label[events.row]
    hits = np.concatenate([[0], np.cumsum(hit)])
    start = events.starts[events.group_owner]
    end = events.group_ends + 1
    caught = hits[end] - hits[start]
    answered = end - start
    f1 = 2 * caught / (answered + n_positive)
    best = _first_maximum(f1, events)
    return Scores(
        f1=f1[best],
        threshold=events.magnitude[events.group_ends[best]],
        auroc=_auroc(events, caught, answered, n_positive, n_negative),
    )


def _first_maximum(
    values: Float[ndarray, " group"], events: DetectorFirings
) -> Int[ndarray, " detector"]:
    first_group = np.searchsorted(events.group_owner, np.arange(len(events.starts)))
    highest = np.maximum.reduceat(values, first_group) if len(values) else values
    is_highest = np.flatnonzero(values == highest[events.group_owner])
    _, first = np.unique(events.group_owner[is_highest], return_index=True)
    return is_highest[first]


def _auroc(
    events: DetectorFirings,
    caught: Int[ndarray, " group"],
    answered: Int[ndarray, " group"],
    n_positive: int,
    n_negative: int,
) -> Float[ndarray, " detector"]:
    if not n_positive or not n_negative or not len(events.starts):
        return np.full(len(events.starts), np.nan)
    first_group = np.searchsorted(events.group_owner, np.arange(len(events.starts)))
    missed = answered - caught
    positives = np.diff(caught, prepend=0)
    negatives = np.diff(missed, prepend=0)
    positives[first_group], negatives[first_group] = caught[first_group], missed[first_group]
    # A positive beats every negative below its group, and half of those within it.
    wins = positives * (n_negative - missed + 0.5 * negatives)
    total = np.add.reduceat(wins, first_group)
    last_group = np.append(first_group[1:], len(caught)) - 1
    silent = 0.5 * (n_positive - caught[last_group]) * (n_negative - missed[last_group])
    return (total + silent) / (n_positive * n_negative)

"""Latents worth a look: the best for each reason to look at one, not the first by number."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from feature_browser.data.labels import TELLING, LatentNames
from feature_browser.data.reading import OpenRun
from feature_browser.draw.numbers import percent, real
from saelab.analysis.steering.records import HIGH_OUTPUT, SteeringScores

DENSE = 0.1
"""A latent that is on for more tokens than this says little about each."""
LEAST_FIRINGS = 20
SEEN = 3
TOLD = 200
"""Latents whose examples are read for a common trait."""


@dataclass(frozen=True)
class Worth:
    """A latent, and why it is worth a look."""

    latent: int
    why: str


def worth_a_look(
    run: OpenRun, names: LatentNames, scores: SteeringScores | None, n: int = 5
) -> list[Worth]:
    """At most `n` latents, of as many different reasons as there are; none is dead or dense."""
    reasons = [_labelled(names), _known(run), _explained(names), _steers(scores), _telling(run)]
    reasons = [iter(each) for each in reasons]
    fine = _ordinary(run)
    found: dict[int, Worth] = {}
    while reasons and len(found) < n:
        for reason in list(reasons):
            one = next((w for w in reason if fine[w.latent] and w.latent not in found), None)
            if one is None:
                reasons.remove(reason)
            elif len(found) < n:
                found[one.latent] = one
    return list(found.values())


def _ordinary(run: OpenRun) -> ndarray:
    return (run.columns["density"] <= DENSE) & (run.columns["n_fired"] >= LEAST_FIRINGS)


def _labelled(names: LatentNames) -> Iterator[Worth]:
    for latent, note in names.labels.notes.items():
        if note.bookmark and (names.features is None or latent < len(names.features)):
            yield Worth(latent, "A reader has bookmarked it.")


def _known(run: OpenRun) -> Iterator[Worth]:
    f1 = run.columns["f1"]
    seen = set()
    for latent in _best(f1):
        match = run.known.matches.get(latent)
        if f1[latent] < TELLING or match is None:
            return
        if match.label not in seen:
            seen.add(match.label)
            yield Worth(
                latent, f"It finds a feature that the text's labels know: F1 {real(f1[latent])}."
            )


def _explained(names: LatentNames) -> Iterator[Worth]:
    judged = [
        (told[0].score, latent)
        for latent, told in names.explained.by_latent.items()
        if told[0].score is not None
    ]
    for score, latent in sorted(judged, key=lambda pair: (-pair[0], pair[1])):
        yield Worth(latent, f"Its explanation predicts where it fires: score {real(score)}.")


def _steers(scores: SteeringScores | None) -> Iterator[Worth]:
    if scores is None:
        return
    for row in scores.best(TOLD):
        output = float(scores.output[row])
        if not output >= HIGH_OUTPUT:
            return
        way = "added" if scores.sign[row] > 0 else "subtracted"
        why = f"It moves the model: {way}, the model says what it promises ({real(output)})."
        yield Worth(int(scores.latent[row]), why)


def _telling(run: OpenRun) -> Iterator[Worth]:
    """Those that fire far beyond their mean: something sets them off."""
    mean, highest = run.columns["mean"], run.columns["max"]
    peaked = np.where(_ordinary(run), highest / np.maximum(np.abs(mean), 1e-9), 0)
    seen: set[tuple[int, int]] = set()
    for latent in _best(peaked):
        places = _places(run, latent)
        # Several latents of one place, or of a text's beginning, say little of the others.
        if not places or places & seen or all(position <= 1 for _, position in places):
            continue
        seen |= places
        density = percent(float(run.columns["density"][latent]))
        times = real(float(peaked[latent]), 1)
        yield Worth(latent, f"On for {density} of tokens, it peaks at {times} times its mean.")


def _places(run: OpenRun, latent: int) -> set[tuple[int, int]]:
    """Where the strongest examples of a latent have their peaks: texts and positions."""
    examples = run.features[latent].examples
    strongest = [*examples.get("top", []), *examples.get("negative", [])][:SEEN]
    return {(one.context, one.position) for one in strongest}


def _best(values: ndarray) -> Iterator[int]:
    order: Int[ndarray, " latent"] = np.argsort(-np.nan_to_num(values), kind="stable")[:TOLD]
    yield from order.tolist()

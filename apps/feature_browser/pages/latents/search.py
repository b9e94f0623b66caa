"""The results of a search in All latents, by reason."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import streamlit as st
from jaxtyping import Bool, Int
from numpy import ndarray

from feature_browser.data.explained import explained
from feature_browser.data.labels import Labels
from feature_browser.data.reading import OpenRun, stamp
from saelab.analysis.feature_file import FeatureFile
from saelab.analysis.records import Features

SHORTEST = 3
MOST_TEXTS = 2000
"""Most texts in which a search of examples looks word by word."""
KINDS = ("top", "negative")
FIRING = "firing on it in an example"
Span = tuple[int, int]
"""The first and the last position of a piece of text."""


def search(
    run: OpenRun, labels: Labels, text: str
) -> tuple[dict[str, Int[ndarray, " found"]], str]:
    """The latents found by number, label, explanation, known feature, token or example text.

    FIRING are those that fire on the text itself in such an example. The second value says what was
    not searched, and why; it is empty if everything was.
    """
    wanted = " ".join(text.lower().split())
    by_example, by_firing, left_out = _by_example(run, wanted)
    found = {
        "number": _by_number(wanted, len(run.features)),
        "label or note": _by_label(labels, wanted),
        "explanation": explained(run.card).find(wanted),
        "known feature or token": run.find(text),
        "example text": by_example,
        FIRING: by_firing,
    }
    return found, left_out


def _by_number(text: str, n: int) -> Int[ndarray, " found"]:
    whole = text.isdecimal() and len(text) < 10 and int(text) < n
    return np.array([int(text)] if whole else [], np.int64)


def _by_label(labels: Labels, text: str) -> Int[ndarray, " found"]:
    found = [
        latent
        for latent, note in labels.notes.items()
        if text in note.label.lower() or text in note.note.lower()
    ]
    return np.array(sorted(found), np.int64)


def _by_example(
    run: OpenRun, text: str
) -> tuple[Int[ndarray, " found"], Int[ndarray, " firing"], str]:
    """Latents with `text` in the stored part of one of their strongest examples.

    And those that fire on the text itself there; and what was not searched.
    """
    nothing = np.zeros(0, np.int64)
    if len(text) < SHORTEST:
        return nothing, nothing, f"example text needs {SHORTEST} characters"
    file = run.features.file
    lines = [
        line for line, words in enumerate(_texts(file.path, stamp(file.path))) if text in words
    ]
    if len(lines) > MOST_TEXTS:
        problem = f"“{text}” is in {len(lines)} texts, too many to look through: add words"
        return nothing, nothing, problem
    spots = _spots(run, text, lines)
    near, firing = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for kind in KINDS:
        if kind in file.kinds:
            parts = _near(file, kind, spots)
            near, firing = np.union1d(near, parts[0]), np.union1d(firing, parts[1])
    return near, firing, ""


@dataclass(frozen=True)
class _Spots:
    """The places of a text: for each line with it, its tokens and the tokens around it."""

    lines: Int[ndarray, " line"]
    on: Bool[ndarray, "line pos"]
    around: Bool[ndarray, "line pos"]


def _spots(run: OpenRun, text: str, lines: list[int]) -> _Spots:
    file = run.features.file
    reach = int(file.facts["reach"])
    shape = (len(lines), file["corpus/tokens"].shape[1])
    on, around = np.zeros(shape, bool), np.zeros(shape, bool)
    for row, line in enumerate(lines):
        for first, last in _places(file, line, text):
            on[row, first : last + 1] = True
            around[row, max(0, first - reach) : first + reach + 1] = True
    return _Spots(np.array(lines, np.int64), on, around)


def _near(
    file: FeatureFile, kind: str, spots: _Spots
) -> tuple[Int[ndarray, " near"], Int[ndarray, " firing"]]:
    """Latents with a peak at most `reach` tokens from the text, and those that fire on it there."""
    contexts = np.asarray(file[f"{kind}/context"])
    latent, slot = np.nonzero(np.isin(contexts, spots.lines))
    line = np.searchsorted(spots.lines, contexts[latent, slot])
    peak = np.asarray(file[f"{kind}/position"][latent, slot], np.int64)
    near = latent[spots.around[line, peak]]
    # The tokens around each peak on which the latent fires, one after the other.
    counts = np.asarray(file[f"{kind}/window_count"], np.int64)
    ends = np.asarray(file[f"{kind}/window_start"])[:-1, None] + np.cumsum(counts, axis=1)
    n, end = counts[latent, slot], ends[latent, slot]
    example = np.repeat(np.arange(len(n)), n)
    entry = np.arange(n.sum()) + np.repeat(end - np.cumsum(n), n)
    at = peak[example] + np.asarray(file[f"{kind}/window_offset"][entry], np.int64)
    firing = latent[example[spots.on[line[example], at]]]
    return np.unique(near), np.unique(firing)


def _places(file: FeatureFile, line: int, text: str) -> list[Span]:
    """The places of `text` in a line."""
    ids, gap = file["corpus/tokens"][line], file.table.gap
    words = [piece.lower() for piece in file.table.pieces(ids[ids >= 0].tolist())]
    starts = np.cumsum([0, *(len(word) + len(gap) for word in words[:-1]), 10**9])
    joined, places, at = gap.join(words), [], -1
    while (at := joined.find(text, at + 1)) >= 0:
        first, last = np.searchsorted(starts, [at, at + len(text) - 1], side="right") - 1
        # A character made of several tokens reaches to the last of them.
        while last + 1 < len(words) and not words[last + 1]:
            last += 1
        places.append((int(first), int(last)))
    return places


@st.cache_resource(max_entries=2, show_spinner="Reading the texts …")
def _texts(path: Path, stamp: int) -> list[str]:
    """Every text of the features file, in lower case."""
    del stamp  # part of the cache's key only
    file = Features.of(path.parent).file
    table = replace(file.table, names=[name.lower() for name in file.vocabulary])
    return [table.text(line[line >= 0].tolist()).lower() for line in file["corpus/tokens"]]

"""Files, read once: every cache is keyed by the file's path and modification time."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from jaxtyping import Int
from numpy import ndarray

from feature_browser.catalogue import Catalogue, RunCard, read_catalogue
from feature_browser.known import NOTHING, Known, plain, read_known
from feature_browser.markup import Html
from feature_browser.place import Place
from saelab.analysis.records import Features
from saelab.config import UsageError

SECONDS_BETWEEN_LISTINGS = 10
PAGES_KEPT = 500


@dataclass(frozen=True)
class OpenRun:
    """A run with its features and what is known of them.

    Attributes:
        columns: per-latent figures of the table, and `f1` with its best known feature's F1.
        spaced: whether the vocabulary's tokens carry their own spaces.
        pages: those drawn lately, see `page`.
    """

    card: RunCard
    features: Features
    known: Known
    columns: dict[str, ndarray]
    spaced: bool
    pages: dict[Place, Html] = field(default_factory=dict, repr=False)

    def page(self, place: Place, draw: Callable[["OpenRun", Place], Html]) -> Html:
        """What `draw` makes of `place`, kept for a while: it is often asked for again."""
        if place not in self.pages:
            if len(self.pages) >= PAGES_KEPT:
                self.pages.pop(next(iter(self.pages)), None)
            self.pages[place] = draw(self, place)
        return self.pages[place]

    def telling_latent(self) -> int:
        """A latent worth showing first: of those that match a known feature well, the best."""
        return int(np.lexsort((self.columns["max"], self.columns["f1"]))[-1])

    def random_latent(self) -> int:
        """Some latent that fires; 0 if none does."""
        alive = np.flatnonzero(self.columns["n_fired"])
        return int(secrets.choice(alive)) if len(alive) else 0

    def find(self, text: str) -> Int[ndarray, " found"]:
        """Latents whose best known feature, or one of whose raised tokens, contains `text`."""
        wanted = text.strip().lower()
        by_name = [
            latent
            for latent, match in self.known.matches.items()
            if wanted in plain(match.label) or wanted in match.label
        ]
        return np.union1d(by_name, self._raising(wanted)).astype(np.int64)

    def _raising(self, text: str) -> Int[ndarray, " found"]:
        file = self.features.file
        if "logits/top_tokens" not in file:
            return np.zeros(0, dtype=np.int64)
        words = _words(file.path, file.path.stat().st_mtime_ns)
        tokens = [token for token, word in enumerate(words) if text in word]
        return np.flatnonzero(np.isin(file["logits/top_tokens"], tokens).any(axis=1))


@st.cache_resource(ttl=SECONDS_BETWEEN_LISTINGS, show_spinner="Looking for runs …")
def list_runs(root: Path) -> Catalogue:
    """The runs below `root`; new ones appear within ten seconds."""
    return read_catalogue(root)


def open_run(card: RunCard) -> OpenRun:
    """The run's features.

    Raises:
        UsageError: they were not collected, or a file is damaged.
    """
    if not card.features_path.is_file():
        raise UsageError(f"{card.features_path} does not exist.")
    return _open(card, _stamp(card.features_path), _stamp(_recovery(card)))


def known_features(card: RunCard) -> Known:
    """What the run's evaluation says of known features; nothing where it says nothing."""
    return _known(_recovery(card), _stamp(_recovery(card)))


@st.cache_data(max_entries=16, show_spinner=False)
def metrics(path: Path, stamp: int) -> list[dict[str, Any]]:
    """The logged steps of the run at `path`; `stamp` is the log's modification time."""
    from saelab.training.run import Run

    return Run(path).metrics()


def _recovery(card: RunCard) -> Path:
    return card.path / "evaluation" / "recovery.json"


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


@st.cache_resource(max_entries=8, show_spinner="Opening the run …", hash_funcs={RunCard: repr})
def _open(card: RunCard, features_stamp: int, known_stamp: int) -> OpenRun:
    del features_stamp  # part of the cache's key only
    features = Features(card.path)
    known = _known(_recovery(card), known_stamp)
    f1 = np.zeros(len(features))
    for latent, match in known.matches.items():
        f1[latent] = match.f1
    columns = {**features.table(), "f1": f1, "latent": np.arange(len(features))}
    columns["negative"] = columns["n_negative"] / np.maximum(1, columns["n_fired"])
    spaced = bool((features.file["vocabulary/bytes"] == ord(" ")).any())
    return OpenRun(card, features, known, columns, spaced)


@st.cache_resource(max_entries=8, show_spinner=False)
def _known(path: Path, stamp: int) -> Known:
    return read_known(path) if stamp else NOTHING


@st.cache_resource(max_entries=4, show_spinner=False)
def _words(path: Path, stamp: int) -> list[str]:
    """Every token of the features file at `path`, in lower case."""
    del stamp  # part of the cache's key only
    file = Features(path.parent).file
    return [file.token(i).lower() for i in range(len(file["vocabulary/offsets"]) - 1)]


def facts(run: OpenRun) -> dict[str, Any]:
    """What the features file says of itself."""
    return run.features.file.facts

"""Files, read once: every cache has the file's path and modification time as its key."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import streamlit as st
from jaxtyping import Float, Int
from numpy import ndarray

from feature_browser.data.address import A, AbstractAddress
from feature_browser.data.catalogue import Catalogue, RunCard, key_of, read_catalogue
from feature_browser.data.explained import Stamp, explained_stamp
from feature_browser.data.known import NOTHING, Known, plain, read_known
from feature_browser.data.weights import DecoderRows, read_decoder
from saelab.analysis.notes import Version, notes_version
from saelab.analysis.records import Features
from saelab.analysis.steering.records import SteeringScores, load_steering_scores, steering_path
from saelab.config import UsageError
from saelab.formats.json_file import read_sealed_json

SECONDS_BETWEEN_LISTINGS = 10
PAGES_KEPT = 500
Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class OpenRun:
    """A run with its features and its known features.

    Attributes:
        columns: per-latent figures of the table, and `f1` with its best known feature's F1.
        spaced: whether the vocabulary's tokens include their spaces.
        drawn: recently drawn pages, see `page`.
    """

    card: RunCard
    features: Features
    known: Known
    columns: dict[str, ndarray]
    spaced: bool
    drawn: dict[tuple[AbstractAddress, Version, Stamp], Any] = field(
        default_factory=dict, repr=False
    )

    def page(self, address: A, draw: Callable[["OpenRun", A], Drawn]) -> Drawn:
        """The result of `draw` for `address`, kept until a note or explanation is written."""
        key = (address, notes_version(self.card.path), explained_stamp(self.card.path))
        if key not in self.drawn:
            if len(self.drawn) >= PAGES_KEPT:
                self.drawn.pop(next(iter(self.drawn)), None)
            self.drawn[key] = draw(self, address)
        return self.drawn[key]

    def telling_latent(self) -> int:
        """A latent to show first: the best of those that match a known feature well."""
        best = np.lexsort((self.columns["max"], self.columns["f1"]))[-1]
        return int(self.columns["latent"][best])

    def random_latent(self) -> int:
        """A random active latent; the first if none is active."""
        alive = self.columns["latent"][self.columns["n_fired"] > 0]
        return int(secrets.choice(alive)) if len(alive) else self.features.latents[0]

    def beside(self, latent: int, step: int) -> int | None:
        """The latent so many places further among those with features; None if there is none."""
        numbers = self.features.latents
        place = numbers.index(latent) + step if latent in numbers else -1
        return numbers[place] if 0 <= place < len(numbers) else None

    def find(self, text: str) -> Int[ndarray, " found"]:
        """Latents whose known feature, or one of whose raised tokens, contains `text`.

        Also the best detectors of the token `text` itself.
        """
        wanted = text.strip().lower()
        by_name = [
            latent
            for latent, match in self.known.matches.items()
            if wanted in plain(match.label) or wanted in match.label
        ]
        words = _words(self.features.file.path, stamp(self.features.file.path))
        by_token = np.union1d(self._raising(wanted, words), self._firing_on(wanted, words))
        return np.union1d(by_name, by_token).astype(np.int64)

    def _firing_on(self, text: str, words: list[str]) -> list[int]:
        tokens = [token for token, word in enumerate(words) if word.strip() == text]
        return [found.latent for token in tokens for found in self.features.latents_on(token)]

    def _raising(self, text: str, words: list[str]) -> Int[ndarray, " found"]:
        file = self.features.file
        if "logits/top_tokens" not in file:
            return np.zeros(0, dtype=np.int64)
        tokens = [token for token, word in enumerate(words) if text in word]
        return np.flatnonzero(np.isin(file["logits/top_tokens"], tokens).any(axis=1))


@st.cache_resource(ttl=SECONDS_BETWEEN_LISTINGS, show_spinner=False)
def list_runs(root: Path) -> Catalogue:
    """The runs below `root`; new ones appear within ten seconds."""
    return read_catalogue(root)


def open_run(card: RunCard) -> OpenRun:
    """The run's features; those of chosen latents, if they alone were collected.

    Raises:
        UsageError: they were not collected, or a file is damaged.
    """
    if not card.evidence_path.is_file():
        raise UsageError(f"{card.features_path} does not exist.")
    stamps = [stamp(path) for path in (card.evidence_path, steering_path(card.path))]
    return _open(card, (stamps[0], stamps[1]), stamp(_recovery(card)))


def known_features(card: RunCard, text: str = "") -> Known:
    """The run's known features, from its evaluation; empty if there are none.

    `text` is one of `texts_with_known`; default: the first of them.
    """
    path = _recovery(card, text)
    return _known(path, stamp(path))


def readable_known(card: RunCard) -> Known:
    """The known features of the run's own text; empty if the file is damaged."""
    try:
        return known_features(card)
    except UsageError:
        return NOTHING


def readable_features(card: RunCard) -> Features | None:
    """The run's features; None if they were not collected, or a file is damaged."""
    try:
        return open_run(card).features
    except UsageError:
        return None


def texts_with_known(card: RunCard) -> list[str]:
    """The labelled texts that the run was evaluated on: its own (""), then others by name."""
    paths = [card.path / "evaluation", *sorted(card.path.glob("evaluation/*/"))]
    names = ["", *(path.name for path in paths[1:])]
    there = zip(paths, names, strict=True)
    return [name for path, name in there if (path / "recovery.json").is_file()]


def steering_scores(card: RunCard) -> SteeringScores | None:
    """The run's steering scores; None if they were not computed.

    Raises:
        UsageError: the file is damaged.
    """
    path = steering_path(card.path)
    return _steering(card.path, stamp(path)) if path.is_file() else None


def readable_scores(card: RunCard) -> SteeringScores | None:
    """The run's steering scores; None also for a damaged file."""
    try:
        return steering_scores(card)
    except UsageError:
        return None


def steering_stamp(card: RunCard) -> int:
    """When the run's steering scores were written; 0 if there are none."""
    return stamp(steering_path(card.path))


def evaluation(card: RunCard, name: str) -> dict[str, Any] | None:
    """The content of `evaluation/NAME.json`; None if it was not measured.

    Raises:
        UsageError: the file is damaged.
    """
    path = card.path / "evaluation" / f"{name}.json"
    return _json(path, stamp(path)) if path.is_file() else None


def decoder(card: RunCard) -> DecoderRows:
    """The run's decoder, read each time: it may take hundreds of megabytes.

    Raises:
        UsageError: the weights file is damaged.
    """
    return read_decoder(card.weights_path, signed=card.signed)


def decoder_norms(card: RunCard) -> Float[ndarray, " latent"]:
    """The norms of the run's decoder rows.

    Raises:
        UsageError: the weights file is damaged.
    """
    return _norms(card.weights_path, stamp(card.weights_path))


@st.cache_resource(max_entries=64, show_spinner=False)
def _norms(path: Path, stamp: int) -> Float[ndarray, " latent"]:
    del stamp  # part of the cache's key only
    return read_decoder(path, signed=False).norms


@st.cache_resource(max_entries=8, show_spinner=False)
def _steering(run: Path, stamp: int) -> SteeringScores:
    del stamp  # part of the cache's key only
    return load_steering_scores(run)


@st.cache_resource(max_entries=64, show_spinner=False)
def _json(path: Path, stamp: int) -> dict[str, Any]:
    del stamp  # part of the cache's key only
    return read_sealed_json(path)


@st.cache_resource(max_entries=16, show_spinner=False)
def metrics(path: Path, stamp: int) -> list[dict[str, Any]]:
    """The logged steps of the run at `path`; `stamp` is the log's modification time.

    Raises:
        UsageError: a line is damaged.
    """
    from saelab.training.run import Run

    del stamp  # part of the cache's key only
    try:
        return [line for line in Run(path).metrics() if isinstance(line, dict)]
    except ValueError as error:
        raise UsageError(f"{path / 'metrics.jsonl'} cannot be read: {error}.") from error


def _recovery(card: RunCard, text: str = "") -> Path:
    there = texts_with_known(card)
    chosen = text if text in there else (*there, "")[0]
    return card.path / "evaluation" / chosen / "recovery.json"


def stamp(path: Path) -> int:
    """The file's modification time; 0 if there is none."""
    return path.stat().st_mtime_ns if path.is_file() else 0


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs={RunCard: key_of})
def _open(card: RunCard, stamps: tuple[int, int], known_stamp: int) -> OpenRun:
    del stamps  # part of the cache's key only: pages show features and steering scores
    features = Features.of(card.path)
    known = _known(_recovery(card), known_stamp)
    f1 = np.zeros(len(features))
    for latent, match in known.matches.items():
        if latent in features.latents:
            f1[features.place(latent)] = match.f1
        elif features.numbers is None:
            raise UsageError(
                f"{_recovery(card)} names latent {latent}, and {features.file.path} has "
                f"{len(f1)}; run `saelab evaluate` and `saelab features` again."
            )
    columns = {**features.table(), "f1": f1, "latent": np.array(features.latents)}
    columns["negative"] = columns["n_negative"] / np.maximum(1, columns["n_fired"])
    spaced = not features.file.table.gap
    return OpenRun(card, features, known, columns, spaced)


@st.cache_resource(max_entries=8, show_spinner=False)
def _known(path: Path, stamp: int) -> Known:
    return read_known(path) if stamp else NOTHING


@st.cache_resource(max_entries=4, show_spinner=False)
def _words(path: Path, stamp: int) -> list[str]:
    """Every token of the features file at `path`, in lower case."""
    del stamp  # part of the cache's key only
    file = Features.of(path.parent).file
    return [file.token(i).lower() for i in range(len(file["vocabulary/offsets"]) - 1)]


def facts(run: OpenRun) -> dict[str, Any]:
    """The facts in the features file."""
    return run.features.file.facts

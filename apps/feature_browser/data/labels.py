"""Names of latents: readers' labels, known features, explanations, or what examples share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary

import streamlit as st
from typing_extensions import override

from feature_browser.data.catalogue import RunCard
from feature_browser.data.explained import Explained, Told, explained
from feature_browser.data.known import Known
from feature_browser.data.reading import readable_features, readable_known
from saelab.analysis.fires_on import PREFIX
from saelab.analysis.lists import Entry
from saelab.analysis.notes import Note, Notes, Version
from saelab.analysis.records import Features
from saelab.config import UsageError

TELLING, SURE = 0.1, 0.5
"""The F1 from which a known feature may name its latent, and from which it is no guess."""
CHANCE = 0.5
"""The score of an explanation that says nothing."""
_FIRES_ON: "WeakKeyDictionary[Features, dict[int, str]]" = WeakKeyDictionary()
"""What each latent's examples share, of the features that are open: pages name many neighbours."""
DOES = "makes the model write: "


@dataclass(frozen=True)
class Labels:
    """The labels of a run's latents.

    Attributes:
        problem: why the notes cannot be read; empty if they can.
    """

    notes: dict[int, Note] = field(default_factory=dict)
    problem: str = ""

    def of(self, latent: int) -> Note:
        """The note of one latent; empty if there is none."""
        return self.notes.get(latent, Note())


def labels_of(card: RunCard) -> Labels:
    """The current labels of the run's latents."""
    notes = Notes(card.path)
    try:
        return _labels(card.path, notes.version())
    except UsageError as error:
        return Labels({}, str(error))


@st.cache_resource(max_entries=8, show_spinner=False)
def _labels(run: Path, version: Version) -> Labels:
    del version  # part of the cache's key only
    return Labels(Notes(run).all())


def lists_of(card: RunCard) -> Mapping[str, tuple[Entry, ...]]:
    """The lists of the run's latents by name; none if its notes cannot be read."""
    notes = Notes(card.path)
    try:
        return _lists(card.path, notes.version())
    except UsageError:
        return {}


@st.cache_resource(max_entries=8, show_spinner=False)
def _lists(run: Path, version: Version) -> Mapping[str, tuple[Entry, ...]]:
    del version  # part of the cache's key only
    return Notes(run).lists()


@dataclass(frozen=True)
class Name:
    """A latent's short name.

    Attributes:
        told: who says so, and how well it fits; empty for a reader's own words.
        score: the number at the end of `told`, if one is there.
        sure: whether it may look certain: a reader has said it, or it fits well.
    """

    text: str = ""
    told: str = ""
    sure: bool = False
    score: float | None = None

    @property
    def guess(self) -> str:
        """The text, with a word of doubt where a known feature fits badly."""
        return f"perhaps {self.text}" if not self.sure and self.told.startswith("F1") else self.text

    @override
    def __str__(self) -> str:
        return f"{self.guess} ({self.told})" if self.told else self.text


@dataclass(frozen=True)
class LatentNames:
    """Short names of latents; without features, only labels and known features."""

    labels: Labels
    known: Known
    features: Features | None = None
    explained: Explained = field(default_factory=Explained)

    @classmethod
    def of(cls, card: RunCard) -> "LatentNames":
        """The current names; a damaged evaluation or features file gives none."""
        return cls(labels_of(card), readable_known(card), readable_features(card), explained(card))

    def name(self, latent: int) -> str:
        """The latent's name with its source and score; empty if it never fires either."""
        return str(self.best(latent))

    def fires_on(self, latent: int) -> str:
        """What the latent's examples have in common, as `Features.fires_on`."""
        if self.features is None or latent not in self.features.latents:
            return ""
        told = _FIRES_ON.setdefault(self.features, {})
        if latent not in told:
            try:
                told[latent] = self.features.fires_on(latent)
            except UsageError:
                told[latent] = ""
        return told[latent]

    def shared(self, latent: int) -> str:
        """`fires_on` without its first words, for a column that is called so."""
        return self.fires_on(latent).removeprefix(PREFIX)

    def best(self, latent: int) -> Name:
        """Its label, else the best of what is known and explained, else what examples share."""
        note = self.labels.of(latent)
        if note.label:
            return Name(note.label, sure=True)
        told = self.explained.best(latent, note)
        if told and told.mark in note.accepted:
            return Name(_said(told), f"accepted; {told.told}", sure=True, score=told.score)
        match = self.known.matches.get(latent)
        known = match and Name(match.title, f"F1 {match.f1:.2f}", match.f1 >= SURE, match.f1)
        if known and known.sure:
            return known
        if told and (told.score is None or told.score > CHANCE):
            return Name(_said(told), told.told, score=told.score)
        if match and known and match.f1 >= TELLING:
            return known
        return Name(self.fires_on(latent))


def _said(told: Told) -> str:
    return f"{DOES}{told.text}" if told.side == "output" else told.text

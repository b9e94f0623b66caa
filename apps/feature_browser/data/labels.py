"""Names of latents: readers' labels, known features, explanations, or what examples share."""

from dataclasses import dataclass, field
from pathlib import Path

import streamlit as st

from feature_browser.data.catalogue import RunCard
from feature_browser.data.explained import Explained, explained
from feature_browser.data.known import Known
from feature_browser.data.reading import readable_features, readable_known
from saelab.analysis.fires_on import PREFIX
from saelab.analysis.notes import Note, Notes, Version
from saelab.analysis.records import Features
from saelab.config import UsageError

TELLING = 0.1
"""The F1 from which a known feature names its latent."""


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
        """The latent's given name, else "fires on: ..."; empty if it never fires either."""
        return self.given(latent) or self.fires_on(latent)

    def fires_on(self, latent: int) -> str:
        """What the latent's examples have in common, as `Features.fires_on`."""
        if self.features is None or latent >= len(self.features):
            return ""
        try:
            return self.features.fires_on(latent)
        except UsageError:
            return ""

    def shared(self, latent: int) -> str:
        """`fires_on` without its first words, for a column that is called so."""
        return self.fires_on(latent).removeprefix(PREFIX)

    def given(self, latent: int) -> str:
        """Its label, else its known feature, else its best explanation; empty if it has none."""
        if label := self.labels.of(latent).label:
            return label
        match = self.known.matches.get(latent)
        if match and match.f1 >= TELLING:
            return match.title
        told = self.explained.best(latent)
        return told.line if told else ""

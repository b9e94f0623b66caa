"""What latents are called: by their readers, else after the known feature they match."""

from dataclasses import dataclass, field
from pathlib import Path

import streamlit as st

from feature_browser.data.catalogue import RunCard
from feature_browser.data.known import Known
from feature_browser.data.notes import Note, Notes
from feature_browser.data.reading import readable_known
from saelab.config import UsageError

TELLING = 0.1
"""The F1 from which a known feature says something of its latent."""


@dataclass(frozen=True)
class Labels:
    """What is written of a run's latents.

    Attributes:
        version: of the notes; -1 if they cannot be read, for the reason in `problem`.
    """

    notes: dict[int, Note] = field(default_factory=dict)
    version: int = 0
    problem: str = ""

    def of(self, latent: int) -> Note:
        """What is written of one latent; empty if nothing is."""
        return self.notes.get(latent, Note())


def labels_of(card: RunCard) -> Labels:
    """What is written of the run's latents now."""
    notes = Notes(card.path)
    try:
        return _labels(card.path, notes.version())
    except UsageError as error:
        return Labels({}, -1, str(error))


@st.cache_resource(max_entries=8, show_spinner=False)
def _labels(run: Path, version: int) -> Labels:
    return Labels(Notes(run).all(), version)


@dataclass(frozen=True)
class LatentNames:
    """Short names of latents."""

    labels: Labels
    known: Known

    @classmethod
    def of(cls, card: RunCard) -> "LatentNames":
        """The names in force now; a damaged evaluation names nothing."""
        return cls(labels_of(card), readable_known(card))

    def name(self, latent: int) -> str:
        """The latent's label, else its known feature; empty if it has neither."""
        if label := self.labels.of(latent).label:
            return label
        match = self.known.matches.get(latent)
        return match.title if match and match.f1 >= TELLING else ""

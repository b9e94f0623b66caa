"""What language models say of a run's latents, the most trusted first."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import streamlit as st
from jaxtyping import Int
from numpy import ndarray

from feature_browser.data.catalogue import RunCard
from saelab.analysis.explain.records import TEXTS, read_set, set_paths
from saelab.analysis.explain.scores import ExplanationScores, read_scores
from saelab.analysis.notes import Note, mark_of
from saelab.config import UsageError

Stamp = tuple[tuple[Path, int], ...]


@dataclass(frozen=True)
class Told:
    """An explanation of a latent.

    Attributes:
        source: who said it, by which prompt and when.
        model: who said it.
        side: `input` (what makes it fire) or `output` (what it does).
        score: how well it predicts where the latent fires, 0.5 by chance; None if nobody judged.
        judge: who judged.
    """

    text: str
    model: str
    source: str
    score: float | None = None
    judge: str = ""
    side: str = "input"

    @property
    def mark(self) -> str:
        """What names it in readers' verdicts."""
        return mark_of(self.side, self.text)

    @property
    def told(self) -> str:
        """Its model and score: it never looks as certain as a reader's label."""
        judged = "not judged" if self.score is None else f"score {self.score:.2f}"
        return f"{self.model}, {judged}"

    @property
    def line(self) -> str:
        """The text with its model and score."""
        return f"{self.text} ({self.told})"

    @property
    def verdict(self) -> str:
        """The score and who gave it, in words."""
        return "not judged" if self.score is None else f"score {self.score:.2f} by {self.judge}"


@dataclass(frozen=True)
class Explained:
    """The explanations of a run's latents.

    Attributes:
        by_latent: those of what makes it fire first, the best of each side first.
        problem: why some could not be read; empty if all were.
    """

    by_latent: dict[int, list[Told]] = field(default_factory=dict)
    problem: str = ""

    def best(self, latent: int, note: Note) -> Told | None:
        """The latent's best explanation: an accepted one, never a rejected one."""
        left = [one for one in self.by_latent.get(latent, ()) if one.mark not in note.rejected]
        return min(left, key=lambda one: one.mark not in note.accepted, default=None)

    def find(self, text: str) -> Int[ndarray, " found"]:
        """The latents of which an explanation contains `text`, in small letters."""
        found = [
            latent
            for latent, told in self.by_latent.items()
            if any(text in one.text.lower() for one in told)
        ]
        return np.array(sorted(found), np.int64)


def explained_stamp(run: Path) -> Stamp:
    """Which sets there are, and when each was written."""
    return tuple(
        (file, file.stat().st_mtime_ns)
        for path in set_paths(run)
        for file in sorted(path.glob("*.json"))
        if file.is_file()
    )


def explained(card: RunCard) -> Explained:
    """The current explanations of the run's latents; damaged sets are left out and told."""
    return _explained(card.path, explained_stamp(card.path))


def _scores(path: Path, problems: list[str]) -> list[ExplanationScores]:
    found = []
    for file in sorted(path.glob("scores_*.json")):
        try:
            found.append(read_scores(file))
        except UsageError as error:
            problems.append(str(error))
    return found


@st.cache_resource(max_entries=8, show_spinner=False)
def _explained(run: Path, stamp: Stamp) -> Explained:
    by_latent: dict[int, list[Told]] = {}
    problems = []
    for file in (file for file, _ in stamp if file.name == TEXTS):
        try:
            texts = read_set(file.parent)
        except UsageError as error:
            problems.append(str(error))
            continue
        scores = _scores(file.parent, problems)
        for latent, one in texts.by_latent.items():
            source = f"{texts.model} · {texts.prompt} · {one.at[:10]}"
            judged = [
                (s, judge.judge) for judge in scores if (s := judge.score(latent)) is not None
            ]
            # Of several judges the one who thinks least of it, so that nothing looks too certain.
            score, judge = min(judged, default=(None, ""))
            told = Told(one.text, texts.model, source, score, judge, texts.side)
            by_latent.setdefault(latent, []).append(told)
    for told in by_latent.values():
        told.sort(key=lambda one: (one.side, -(0.5 if one.score is None else one.score)))
    return Explained(by_latent, " ".join(problems))

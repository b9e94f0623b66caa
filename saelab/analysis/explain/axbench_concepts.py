"""Concepts to steer to, and the instructions that steered models answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from saelab.analysis.explain.evidence import LONGEST_TEXT, evidence_of, written
from saelab.analysis.explain.records import ExplanationSet
from saelab.analysis.records import Features
from saelab.config import UsageError
from saelab.formats.json_file import parse_json
from saelab.formats.regular import read_regular

MAX_BYTES, MOST_TEXTS = 2**28, 32
INSTRUCTIONS = (
    *("Describe what a good morning looks like.", "Give three tips for a long journey."),
    *("Explain how to make a simple soup.", "Write the beginning of a short story."),
    *("Say why people keep gardens.", "Recommend something to do on a rainy day."),
    *("Explain what makes a good friend.", "Write a short letter to a neighbour."),
    *("Describe a town that you like.", "Say how to learn a new skill."),
)


@dataclass(frozen=True)
class SteeringConcept:
    """What is to be steered to.

    Attributes:
        positive, negative: texts with and without it, from which directions are made.
        latent: the latent that means it; None to take the one that tells the texts apart best.
    """

    text: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    latent: int | None = None


def read_concepts(path: Path) -> list[SteeringConcept]:
    """The concepts of a file of JSON lines: concept, positive, negative, and perhaps latent.

    Raises:
        UsageError: a line is no concept.
    """
    found = []
    for number, line in enumerate(read_regular(path, most=MAX_BYTES).split(b"\n"), 1):
        if line.strip():
            found.append(_concept(line, f"Line {number} of {path}"))
    if not found:
        raise UsageError(f"{path} holds no concept.")
    return found


def _concept(line: bytes, where: str) -> SteeringConcept:
    match parse_json(line, where, max_values=100_000):
        case {"concept": str(text), "positive": [*some], "negative": [*others], **rest}:
            pass
        case _:
            raise UsageError(f"{where} needs `concept`, and lists `positive` and `negative`.")
    texts = [text, *some, *others]
    if not some or not others or not all(isinstance(t, str) and t.strip() for t in texts):
        raise UsageError(f"{where} has an empty text, or no texts with or without the concept.")
    latent = rest.get("latent")
    if latent is not None and (type(latent) is not int or latent < 0):
        raise UsageError(f"{where} names no latent: {str(latent)[:40]!r}; give its number.")
    cut = [tuple(t[:LONGEST_TEXT] for t in part[:MOST_TEXTS]) for part in (some, others)]
    return SteeringConcept(text[:LONGEST_TEXT], cut[0], cut[1], latent)


def concepts_of(
    features: Features, texts: ExplanationSet, latents: Sequence[int]
) -> Iterator[SteeringConcept]:
    """Explained latents as concepts; their texts are those on which they fire, and do not."""
    for latent in latents:
        found = evidence_of(features[latent])
        firing, silent = [*found.shown, *found.held_out], found.silent
        positive, negative = (
            tuple(written(e, features) for e in part[:MOST_TEXTS]) for part in (firing, silent)
        )
        if positive and negative:
            yield SteeringConcept(texts.by_latent[latent].text, positive, negative, latent)


def read_instructions(path: Path | None) -> list[str]:
    """The lines of a file, or INSTRUCTIONS.

    Raises:
        UsageError: there are fewer than two, of which one half chooses the factor.
    """
    if path is None:
        return list(INSTRUCTIONS)
    text = read_regular(path, most=2**20).decode(errors="replace")
    lines = [line.strip()[:LONGEST_TEXT] for line in text.splitlines() if line.strip()]
    if len(lines) < 2:
        raise UsageError(
            f"{path} has {len(lines)} instructions; it takes two at least, one a line."
        )
    return lines

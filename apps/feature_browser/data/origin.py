"""Where an imported SAE came from, as its run's provenance says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MOST_NOTES = 8


@dataclass(frozen=True)
class Origin:
    """An imported SAE's origin; None for what is not known.

    Attributes:
        source: the tool that wrote it, a colon, and the file or release.
        licence, paper: of the release.
        notes: what somebody who uses the SAE must know.
        stated: what the release says, by figure: least and most of its SAEs.
    """

    source: str
    licence: str | None
    paper: str | None
    notes: tuple[str, ...]
    stated: tuple[tuple[str, float, float], ...]

    @property
    def tool(self) -> str:
        """The tool, and its kind of SAE."""
        return self.source.partition(":")[0]


def origin_of(provenance: Mapping[str, Any]) -> Origin | None:
    """The origin in a run's provenance, which is untrusted; None of a run that was trained."""
    source = _text(provenance.get("imported_from"))
    if source is None:
        return None
    notes, stated = provenance.get("notes"), provenance.get("stated")
    given = notes if isinstance(notes, list) else []
    figures = stated.items() if isinstance(stated, dict) else ()
    return Origin(
        source,
        _text(provenance.get("licence")),
        _text(provenance.get("paper")),
        tuple(text for note in given[:MOST_NOTES] if (text := _text(note)) is not None),
        tuple((name, *span) for name, value in figures if (span := _span(value)) is not None),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _span(value: object) -> tuple[float, float] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in value):
        return None
    return float(value[0]), float(value[1])

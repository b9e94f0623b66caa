"""Named lists of latents, each with a comment: how they stand among a run's notes.

An entry is an edit of its latent in the field `list`. Its value has the list's name in the first
line, the entry's place in the second, and the comment, if there is one, from the third on. Without
a second line the latent is not on the list, or no longer. So each entry is as safe from two writers
as a label is, and what was taken away can be brought back.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from saelab.config import UsageError

LONGEST_NAME, LONGEST_COMMENT = 80, 1000
LONGEST_ENTRY = LONGEST_NAME + LONGEST_COMMENT + 40
STAY, END, BEFORE = "+", ">", "<"
"""What a writer may give as a place: where it is, or else the end; the end; before a latent."""
_PLACE = re.compile(r"[+>]|<\d{1,10}|-?\d{1,15}(\.\d{1,20})?(e[+-]?\d{1,3})?")


@dataclass(frozen=True)
class Entry:
    """A latent on a list; lists are sorted by `place`."""

    latent: int
    place: float
    comment: str = ""


def lines_of(text: str) -> list[str]:
    """The lines with any text; an entry's comment has at most one, as its field does."""
    return [said for line in text.splitlines() if (said := line.strip())]


def check_one_line(text: str, what: str) -> None:
    """Refuse a text of several lines, which is shown where there is room for one."""
    if (n_lines := len(lines_of(text))) > 1:
        raise UsageError(f"{what} has {n_lines} lines; write one.")


def comment_of(value: str) -> str:
    """The comment in the value of an edit, as it was written."""
    return "\n".join(value.split("\n")[2:])


@dataclass(frozen=True)
class EntryText:
    """The value of an edit, taken apart; `place` is empty if the latent is not on the list.

    A comment is one line. One of several lines, as older versions wrote, is read as one.
    """

    name: str
    place: str = ""
    comment: str = ""

    @classmethod
    def of(cls, value: str) -> "EntryText | None":
        """The parts of a value; None if it is no entry."""
        name, _, rest = value.partition("\n")
        place, _, comment = rest.partition("\n")
        fits = 0 < len(name.strip()) <= LONGEST_NAME and len(comment) <= LONGEST_COMMENT
        fits = fits and "\r" not in name + place
        if not fits or (place and not _PLACE.fullmatch(place)) or (comment and not place):
            return None
        return cls(name.strip(), place, " ".join(lines_of(comment)))

    @property
    def value(self) -> str:
        """The text of the edit."""
        return "\n".join([self.name, self.place, self.comment]).rstrip()

    def entry(self, latent: int) -> Entry | None:
        """The entry of a latent at a settled place; None if it is not on the list."""
        if not self.place or self.place[0] in (STAY, END, BEFORE):
            return None
        place = float(self.place)
        return Entry(latent, place, self.comment) if math.isfinite(place) else None


def settled(latent: int, wanted: EntryText, there: Iterable[Entry]) -> list[tuple[int, str]]:
    """Latents and values to be written, so that `latent` stands where it is wanted.

    `there` is the list as it is. Where no number is left between two places, the list is numbered
    anew.
    """
    if not wanted.place or wanted.place[0] not in (STAY, END, BEFORE):
        return [(latent, wanted.value)]
    entries = sorted(there, key=lambda one: (one.place, one.latent))
    own = next((one for one in entries if one.latent == latent), None)
    if wanted.place == STAY and own:
        return [(latent, _at(wanted, own.place))]
    others = [one for one in entries if one.latent != latent]
    limit = wanted.place[1:]
    follower = [n for n, one in enumerate(others) if str(one.latent) == limit]
    at = follower[0] if follower else len(others)
    low = others[at - 1].place if at else None
    high = others[at].place if at < len(others) else None
    place = _between(low, high)
    if place is not None:
        return [(latent, _at(wanted, place))]
    moved = [(one.latent, _at(EntryText(wanted.name, "", one.comment), float(n + (n >= at))))
             for n, one in enumerate(others)]  # fmt: skip
    return [*moved, (latent, _at(wanted, float(at)))]


def _between(low: float | None, high: float | None) -> float | None:
    """A place after `low` and before `high`; None if there is none."""
    if low is None or high is None:
        place = 0.0 if low is high else (low + 1 if low is not None else (high or 0.0) - 1)
    else:
        place = (low + high) / 2
    after = low is None or low < place
    return place if after and (high is None or place < high) else None


def _at(wanted: EntryText, place: float) -> str:
    return EntryText(wanted.name, f"{place:.17g}", wanted.comment).value


def lists_of(edits: Iterable[tuple[int, str]]) -> Mapping[str, tuple[Entry, ...]]:
    """The lists by name, from the last edits of each latent and list."""
    found: dict[str, list[Entry]] = {}
    for latent, value in edits:
        text = EntryText.of(value)
        entry = text.entry(latent) if text else None
        if text and entry:
            found.setdefault(text.name, []).append(entry)
    return {
        name: tuple(sorted(found[name], key=lambda one: (one.place, one.latent)))
        for name in sorted(found)
    }

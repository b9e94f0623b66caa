"""A latent's examples, divided: some explain it, others test the explanation.

No text that the explainer saw is used by the test. Delphi (2410.13928) divides the same way.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from saelab.analysis.examples import Example
from saelab.analysis.records import Features, LatentRecord
from saelab.console import visible

N_STRONGEST, N_NEAR = 8, 2
"""Examples that the explainer sees: strongest firings, and near misses; besides, one a stratum."""
LONGEST_TOKEN, LONGEST_TEXT = 60, 700
"""Characters of a token, and of an example, in a question."""
MARKED = 0.3
"""Share of the example's largest activation from which a token is marked (Delphi)."""
OPEN, CLOSE = "<<", ">>"


@dataclass(frozen=True)
class DividedExamples:
    """A latent's examples.

    Attributes:
        sign: -1 if it fires mostly below zero; only this side is explained.
        shown: firings that the explainer sees, the strongest first.
        near: near misses that it sees.
        held_out: firings in other texts, an equal number of each stratum first.
        silent: texts without a firing that it does not see, near misses first.
        n_near: how many of `silent` are near misses.
    """

    sign: int
    shown: list[Example]
    near: list[Example]
    held_out: list[Example]
    silent: list[Example]
    n_near: int


def evidence_of(record: LatentRecord) -> DividedExamples:
    """The latent's examples; the same record is always divided the same way."""
    sign = -1 if 2 * record.n_negative > record.n_fired else 1
    kinds = {
        kind: [e for e in found if e.value * sign > 0]
        for kind in ("top", "negative", "strata", "random")
        if (found := record.examples.get(kind))
    }
    extreme = kinds.get("negative" if sign < 0 else "top", [])
    strata = _by_stratum(record, kinds.get("strata", []))
    shown = _apart([*extreme[::2][:N_STRONGEST], *(part[0] for part in strata if part)], ())
    near = record.examples.get("near_miss", [])
    near_shown = _apart(near[:N_NEAR], _places(shown))
    seen = _places([*shown, *near_shown])
    in_turn = (e for turn in zip_longest(*strata) for e in turn if e is not None)
    held_out = _apart(chain(in_turn, kinds.get("random", []), extreme), seen)
    hard = _apart(near, seen)
    easy = _apart(record.examples.get("silent", []), seen | _places(hard))
    shown.sort(key=lambda example: -abs(example.value))
    return DividedExamples(sign, shown, near_shown, held_out, [*hard, *easy], len(hard))


def _by_stratum(record: LatentRecord, found: Sequence[Example]) -> list[list[Example]]:
    """The examples of each stratum, the strongest stratum first."""
    parts = [
        [e for e in found if part.low <= abs(e.value) < part.high] for part in record.strata[:-1]
    ]
    if record.strata:
        parts.append([e for e in found if abs(e.value) >= record.strata[-1].low])
    return parts[::-1]


def _places(examples: Iterable[Example]) -> set[int]:
    return {example.context for example in examples}


def _apart(examples: Iterable[Example], seen: Collection[int]) -> list[Example]:
    """The first example of each text that is not `seen`."""
    found: dict[int, Example] = {}
    for example in examples:
        if example.context not in seen:
            found.setdefault(example.context, example)
    return list(found.values())


def firing_places(example: Example, sign: int) -> list[int]:
    """The indices of the tokens where it fires at `MARKED` of the largest or more, or peaks."""
    values = [sign * token.activation for token in example.tokens]
    least = MARKED * max(values)
    return [i for i, v in enumerate(values) if (v > 0 and v >= least) or i == example.peak]


def written(example: Example, features: Features, marks: Collection[int] = ()) -> str:
    """The example's text on one line, with some of its tokens in <<angle brackets>>.

    The text may hold anything: its own brackets are taken apart, what cannot be seen is made
    visible, and it is cut at `LONGEST_TEXT` characters on each side of the peak's.
    """
    gap = features.file.table.gap
    parts = [_part(token.text, marked=i in marks) for i, token in enumerate(example.tokens)]
    half = LONGEST_TEXT // 2
    before, after = gap.join(parts[: example.peak]), gap.join(parts[example.peak + 1 :])
    before = before if len(before) <= half else f"…{before[-half:]}"
    after = after if len(after) <= half else f"{after[:half]}…"
    return gap.join(part for part in (before, parts[example.peak], after) if part).strip()


def _part(text: str, *, marked: bool) -> str:
    plain = text[:LONGEST_TOKEN].replace(OPEN, "< <").replace(CLOSE, "> >")
    shown = "".join(c if c == " " else visible(c) for c in plain)
    if not marked:
        return shown
    bare = shown.strip()
    return shown.replace(bare, f"{OPEN}{bare}{CLOSE}", 1) if bare else f"{OPEN}{shown}{CLOSE}"

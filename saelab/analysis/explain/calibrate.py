"""How far a judge can be trusted, where the truth is known: on the tiny model's language.

Every feature of that language has a description in plain English and is known at every token. A
judge gets, for texts with and without a feature, its true description, a false one, one that is too
broad (true of all its tokens and of at least twice as many) and one that is too narrow (of half or
less). A good judge accepts the first alone. Half of the texts without the feature are near misses:
the too broad description is true there. Beside the judge stands what the descriptions themselves
allow: the scores of who knows where each of them is true.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32
from numpy import ndarray

from saelab.analysis.explain.evidence import CLOSE, OPEN
from saelab.analysis.explain.judging import (
    JudgeTrial,
    Merit,
    by_words,
    interval,
    judge_question,
    merits,
    score_of,
    verdict,
)
from saelab.clients.ledger import Ledger
from saelab.clients.question import Question
from saelab.config import UsageError
from saelab.lm.tiny.grammar import generate
from saelab.lm.tiny.labels import HIERARCHIES, LABELS, UNIONS
from saelab.lm.tiny.vocabulary import WORDS

KINDS = ("true", "false", "too broad", "too narrow")
ACCEPTED = 0.75
"""The score from which a description counts as accepted: half way from chance to perfect."""
N_DOCUMENTS, WINDOW = 400, 24
LEAST = 60
"""Tokens on which a feature must be on to be tried."""
APART = 0.2
"""Share of either's tokens that a false description and the truth may have in common."""


@dataclass(frozen=True)
class Language:
    """Documents, and features that are known on them.

    Attributes:
        tokens: `[document, position]`.
        on: where each description is true, `[document, position]`.
        described: the description of each of them, by name.
    """

    tokens: Int32[ndarray, "document pos"]
    on: Mapping[str, Bool[ndarray, "document pos"]]
    described: Mapping[str, str]


@cache
def language() -> Language:
    """Held-out documents of the tiny model's language."""
    found = generate(1, 0, N_DOCUMENTS, split="held-out")
    on = {label.name: found.labels[..., i] for i, label in enumerate(LABELS)}
    described = {label.name: label.description for label in LABELS}
    for name, parts in HIERARCHIES.items():
        key = f"any {name}"
        on[key] = np.logical_or.reduce([on[part] for part in parts])
        described[key] = UNIONS[name]
    for token, count in enumerate(np.bincount(found.tokens.ravel(), minlength=len(WORDS))):
        if count >= LEAST // 4 and WORDS[token].isalpha():
            key = f"word {WORDS[token]}"
            on[key] = found.tokens == token
            described[key] = f"This token is the word “{WORDS[token]}”."
    return Language(found.tokens, on, described)


@dataclass
class Case:
    """A feature: its trials, and the descriptions that are tried.

    Attributes:
        texts: the description of each kind.
        ideal: for each kind, the verdicts of who knows where the description is true.
    """

    feature: str
    trials: list[JudgeTrial]
    texts: dict[str, str]
    ideal: dict[str, list[float]]


@dataclass
class Calibration:
    """What a judge makes of descriptions.

    Attributes:
        scores: for each kind of description, each feature's score.
        ideal: the same by who knows where descriptions are true.
        n_unread: answers that were neither yes nor no, or are missing.
    """

    judge: str
    scores: dict[str, list[float]] = field(default_factory=dict)
    auc: dict[str, list[float]] = field(default_factory=dict)
    ideal: dict[str, list[float]] = field(default_factory=dict)
    n_unread: int = 0

    def accepted(self, kind: str) -> float:
        """The share of descriptions of a kind with a score of ACCEPTED or more."""
        return float(np.mean([score >= ACCEPTED for score in self.scores[kind]]))

    def summary(self) -> dict[str, dict[str, Any]]:
        """For each kind: the number of features, mean score with its interval, share accepted."""
        return {
            kind: {
                "n": len(scores),
                "score": interval(scores),
                "auc": interval(self.auc[kind]) if self.auc.get(kind) else None,
                "accepted": self.accepted(kind),
                "ideal": interval(self.ideal[kind]),
            }
            for kind, scores in self.scores.items()
        }


def cases(n_features: int | None, n: int, seed: int = 0) -> list[Case]:
    """Features in a random order, each with `n` true and `n` false trials of each test.

    Raises:
        UsageError: there are no such many features.
    """
    told = language()
    draw = random.Random(seed)
    names = [
        name
        for name, on in told.on.items()
        if not name.startswith("word ") and on.sum() >= LEAST and not _somewhere(on).all()
    ]
    if n_features is not None and n_features > len(names):
        raise UsageError(f"--first {n_features} features: the language has {len(names)} to try.")
    draw.shuffle(names)
    return [_case(told, name, n, draw) for name in names[:n_features]]


def _case(told: Language, feature: str, n: int, draw: random.Random) -> Case:
    kinds = {"true": feature, **other_descriptions(told, feature, draw)}
    near = told.on[kinds["too broad"]] if "too broad" in kinds else None
    places = _places(told.on[feature], near, n, draw)
    trials = [
        JudgeTrial(test, _text(told, row, start, marks), truth)
        for test, row, start, marks, truth in places
    ]
    ideal = {kind: [_ideal(told.on[name], *place[:4]) for place in places]
             for kind, name in kinds.items()}  # fmt: skip
    texts = {kind: told.described[name] for kind, name in kinds.items()}
    return Case(feature, trials, texts, ideal)


Place = tuple[str, int, int, list[int], bool]
"""A trial's test, document, first position, marked positions, and truth."""


def _somewhere(on: Bool[ndarray, "document pos"]) -> Bool[ndarray, "document start"]:
    """Whether each window has it somewhere."""
    sums = np.cumsum(np.pad(on, ((0, 0), (1, 0))), axis=1)
    return (sums[:, WINDOW:] - sums[:, :-WINDOW]) > 0


def _places(
    on: Bool[ndarray, "document pos"],
    near: Bool[ndarray, "document pos"] | None,
    n: int,
    draw: random.Random,
) -> list[Place]:
    some = _somewhere(on)
    true, false = _drawn(some, n, draw), _drawn(~some, n, draw)
    if near is not None:
        false = [*_drawn(~some & _somewhere(near), n // 2, draw), *false][:n]
    places: list[Place] = [("detection", row, start, [], True) for row, start in true]
    places += [("detection", row, start, [], False) for row, start in false]
    for number, (row, start) in enumerate(true):
        here = np.flatnonzero(on[row, start : start + WINDOW]) + start
        free = np.flatnonzero(~on[row, start : start + WINDOW]) + start
        places.append(("fuzzing", row, start, here.tolist(), True))
        size = min(len(here), len(free))
        if number < (n + 1) // 2 and size:
            marks = sorted(draw.sample(free.tolist(), size))
            places.append(("fuzzing", row, start, marks, False))
    for row, start in false[: n - (n + 1) // 2]:
        tempting = [] if near is None else np.flatnonzero(near[row, start : start + WINDOW])
        mark = draw.choice(tempting) if len(tempting) else draw.randrange(WINDOW)
        places.append(("fuzzing", row, start, [start + int(mark)], False))
    return places


def _drawn(
    where: Bool[ndarray, "document start"], n: int, draw: random.Random
) -> list[tuple[int, int]]:
    """Document and first position of `n` of the windows, at random."""
    windows = np.argwhere(where)
    rows = draw.sample(range(len(windows)), min(n, len(windows)))
    return [(int(windows[row, 0]), int(windows[row, 1])) for row in rows]


def other_descriptions(told: Language, feature: str, draw: random.Random) -> dict[str, str]:
    """Names of a false description, one too broad and one too narrow, where there are such."""
    on = told.on[feature]
    size = int(on.sum())
    both = {name: int((other & on).sum()) for name, other in told.on.items()}
    sizes = {name: int(other.sum()) for name, other in told.on.items()}
    false, broad, narrow = [], [], []
    for name, common in both.items():
        if name == feature or not sizes[name]:
            continue
        word = name.startswith("word ")
        if not word and common <= APART * min(size, sizes[name]) and sizes[name] >= LEAST:
            false.append(name)
        elif not word and common >= 0.99 * size and sizes[name] >= 2 * size:
            broad.append(name)
        elif common >= 0.99 * sizes[name] and 2 * sizes[name] <= size:
            narrow.append(name)
    found = {"false": draw.choice(false)} if false else {}
    if broad:
        found["too broad"] = min(broad, key=sizes.__getitem__)
    if narrow:
        found["too narrow"] = max(narrow, key=sizes.__getitem__)
    return found


def _text(told: Language, row: int, start: int, marks: Sequence[int]) -> str:
    words = [
        f"{OPEN}{WORDS[token]}{CLOSE}" if place in marks else WORDS[token]
        for place, token in enumerate(told.tokens[row, start : start + WINDOW].tolist(), start)
    ]
    return " ".join(words)


def _ideal(on: ndarray, test: str, row: int, start: int, marks: Sequence[int]) -> float:
    """Whether the description is true in the text, or of most of the marked tokens."""
    if test == "detection":
        return float(on[row, start : start + WINDOW].any())
    return float(on[row, marks].mean() > 0.5)


def calibration_questions(found: Sequence[Case]) -> dict[tuple[str, str, int], Question]:
    """What a judge is asked, by feature, kind of description, and number of the trial."""
    return {
        (case.feature, kind, i): judge_question(
            f"calibrate/{case.feature.replace(' ', '_')}/{kind.replace(' ', '_')}", text, trial, i
        )
        for case in found
        for kind, text in case.texts.items()
        for i, trial in enumerate(case.trials)
    }


def calibration(judge: str, found: Sequence[Case], ledger: Ledger | None) -> Calibration:
    """The judge's scores by the ledger's answers; without a ledger, by words."""
    result = Calibration(judge)
    questions = {} if ledger is None else calibration_questions(found)
    for case in found:
        for kind, text in case.texts.items():
            chances: list[float | None] = []
            for i, trial in enumerate(case.trials):
                if ledger is None:
                    chances.append(by_words(text, trial))
                    continue
                answer = ledger.answers.get(questions[case.feature, kind, i].key)
                chances.append(None if answer is None else verdict(answer))
                result.n_unread += chances[-1] is None
            _enter(
                result, kind, merits(case.trials, chances), merits(case.trials, case.ideal[kind])
            )
    return result


def _enter(
    result: Calibration, kind: str, own: Mapping[str, Merit], ideal: Mapping[str, Merit]
) -> None:
    score, best = score_of(own), score_of(ideal)
    if score is None or best is None:
        return
    result.scores.setdefault(kind, []).append(score)
    result.ideal.setdefault(kind, []).append(best)
    if aucs := [merit.auc for merit in own.values() if merit.auc is not None]:
        result.auc.setdefault(kind, []).append(float(np.mean(aucs)))

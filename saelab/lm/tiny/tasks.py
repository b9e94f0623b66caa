"""What the shipped model can do: accuracy on held-out prompts, one task per skill.

A prompt is a held-out document, cut where its labels say that the prefix determines the answer; so
in most prompts other sentences come before the relevant one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.config import UsageError
from saelab.lm.tiny import N_CTX
from saelab.lm.tiny.grammar import Documents, generate
from saelab.lm.tiny.labels import LABEL_INDEX
from saelab.lm.tiny.vocabulary import KIND, WORDS, ids

Logits = Callable[[Int[Tensor, "batch pos"]], Float[Tensor, "batch pos vocabulary"]]
"""Tokens to next-token logits."""

N_PROMPTS = 1000
_CHUNK = 128
_BATCH = 100


@dataclass(frozen=True)
class Task:
    """A skill and its scoring.

    Attributes:
        name: snake_case identifier.
        question: what a correct answer is, in one sentence.
        required: accuracy that the shipped weights must reach at 1,000 prompts.
        rule: "top": the most likely of the candidates is correct; "mass": the correct candidates
            have more probability together than the wrong ones.
        cuts: where documents may be cut; the next token is then an answer.
        judge: candidates and correct tokens, from the answer and the token before the cut's.
    """

    name: str
    question: str
    required: float
    rule: Literal["top", "mass"]
    cuts: Callable[[Documents], Bool[np.ndarray, "n pos"]]
    judge: Callable[[int, int], tuple[Bool[np.ndarray, " v"], Bool[np.ndarray, " v"]]]


@dataclass(frozen=True)
class Prompts:
    """Prompts of one task, padded on the right with token 0.

    Attributes:
        tokens: `[n, pos]`, zero after the cut.
        last: `[n]`, position of the last token of the prompt.
        candidates: `[n, v]`, tokens that compete.
        correct: `[n, v]`, those of them that are right.
    """

    tokens: Int[Tensor, "n pos"]
    last: Int[Tensor, " n"]
    candidates: Bool[Tensor, "n v"]
    correct: Bool[Tensor, "n v"]


def _set(*classes: str) -> Bool[np.ndarray, " v"]:
    members = np.zeros(len(WORDS), np.bool_)
    members[list(ids(*classes))] = True
    return members


_ALL = np.ones(len(WORDS), np.bool_)
_YEARS = _set("year")
_SPANISH = np.array([kind.startswith("es_") for kind in KIND])
_PRONOUNS = np.isin(WORDS, ("she", "he", "her", "his"))
_NUMBERS = (_set("singular_verb"), _set("plural_verb"))
_SENTIMENTS = (_set("positive"), _set("negative"))


def _exactly(answer: int, _: int) -> tuple[Bool[np.ndarray, " v"], Bool[np.ndarray, " v"]]:
    return _ALL, np.arange(len(WORDS)) == answer


def _later(_: int, first: int) -> tuple[Bool[np.ndarray, " v"], Bool[np.ndarray, " v"]]:
    return _YEARS, _YEARS & (np.arange(len(WORDS)) > first)


def _closer(answer: int, _: int) -> tuple[Bool[np.ndarray, " v"], Bool[np.ndarray, " v"]]:
    return _set("closing"), np.arange(len(WORDS)) == answer


def _side(*sides: Bool[np.ndarray, " v"]) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    def judge(answer: int, _: int) -> tuple[np.ndarray, np.ndarray]:
        return np.any(sides, axis=0), next(side for side in sides if side[answer])

    return judge


def _where(
    label: str, answers: Bool[np.ndarray, " v"] = _ALL
) -> Callable[[Documents], Bool[np.ndarray, "n pos"]]:
    def cuts(documents: Documents) -> Bool[np.ndarray, "n pos"]:
        found = documents.labels[:, :, LABEL_INDEX[label]].copy()
        found[:, :-1] &= answers[documents.tokens[:, 1:]]
        found[:, -1] = False
        return found

    return cuts


def _sentiment_cuts(documents: Documents) -> Bool[np.ndarray, "n pos"]:
    known = _SENTIMENTS[0] | _SENTIMENTS[1]
    positive = _where("document_positive", known)(documents)
    return positive | _where("document_negative", known)(documents)


def _pronoun_cuts(documents: Documents) -> Bool[np.ndarray, "n pos"]:
    female = _where("referent_female", _PRONOUNS)(documents)
    return female | _where("referent_male", _PRONOUNS)(documents)


TASKS: tuple[Task, ...] = (
    Task(
        "indirect_object",
        "The recipient is the most likely token of the whole vocabulary.",
        *(0.98, "top", _where("awaiting_recipient"), _exactly),
    ),
    Task(
        "agreement_across_attractor",
        "Main verbs in the subject's number outweigh the others, with a noun of the other number "
        "between subject and verb.",
        *(0.98, "mass", _where("attractor", _NUMBERS[0] | _NUMBERS[1]), _side(*_NUMBERS)),
    ),
    Task(
        "gendered_pronoun",
        "The subject's pronoun is the most likely token of the whole vocabulary.",
        *(0.98, "top", _pronoun_cuts, _exactly),
    ),
    Task(
        "greater_than",
        "Years later than the first outweigh the other years.",
        *(0.98, "mass", _where("awaiting_later_year"), _later),
    ),
    Task(
        "weekdays",
        "The computed day is the most likely token of the whole vocabulary.",
        *(0.98, "top", _where("awaiting_calendar_answer", _set("weekday")), _exactly),
    ),
    Task(
        "months",
        "The computed month is the most likely token of the whole vocabulary.",
        *(0.98, "top", _where("awaiting_calendar_answer", _set("month")), _exactly),
    ),
    Task(
        "language_switch",
        "Words of the new speaker's language outweigh all others.",
        *(0.98, "mass", _where("language_switch"), _side(_SPANISH, ~_SPANISH)),
    ),
    Task(
        "closing_bracket",
        "Three or more deep, the right one is the most likely of the four closing brackets.",
        *(0.97, "top", _where("bracket_depth_3_or_more", _set("closing")), _closer),
    ),
    Task(
        "repeated_span",
        "The next word of the random span is the most likely token of the whole vocabulary.",
        *(0.97, "top", _where("in_repeated_span"), _exactly),
    ),
    Task(
        "document_sentiment",
        "Adjectives of the document's sentiment outweigh those of the other.",
        *(0.98, "mass", _sentiment_cuts, _side(*_SENTIMENTS)),
    ),
)
"""Every skill with its score and the accuracy that the shipped weights must reach."""


def task(name: str) -> Task:
    """The task called `name`; UsageError if there is none."""
    for candidate in TASKS:
        if candidate.name == name:
            return candidate
    raise UsageError(f"There is no task {name!r}; tasks: {', '.join(t.name for t in TASKS)}.")


def prompts(of: Task, n: int = N_PROMPTS, *, seed: int = 0) -> Prompts:
    """The first `n` prompts of a task: at most one from each held-out document of `seed`."""
    return prompts_of_all((of,), n, seed=seed)[of.name]


def prompts_of_all(
    tasks: Sequence[Task] = TASKS, n: int = N_PROMPTS, *, seed: int = 0, longest: int = N_CTX
) -> dict[str, Prompts]:
    """What `prompts` gives for each task, by name, in one pass over the documents.

    Documents are cut within their first `longest` tokens, so a smaller number costs less to run.
    """
    cuts: dict[str, list[tuple[np.ndarray, int]]] = {of.name: [] for of in tasks}
    draws = {of.name: np.random.default_rng(seed) for of in tasks}
    start = 0
    while unfinished := [of for of in tasks if len(cuts[of.name]) < n]:
        documents = generate(seed, start, start + _CHUNK, split="held-out", n_ctx=longest)
        for of in unfinished:
            cuts[of.name] += _cuts(of, documents, draws[of.name])
        start += _CHUNK
    return {of.name: _assemble(of, cuts[of.name][:n]) for of in tasks}


def _cuts(of: Task, documents: Documents, rng: np.random.Generator) -> list[tuple[np.ndarray, int]]:
    """Each document that has one with a place where the task may cut it."""
    return [
        (tokens, int(rng.choice(np.flatnonzero(possible))))
        for tokens, possible in zip(documents.tokens, of.cuts(documents), strict=True)
        if possible.any()
    ]


def _assemble(of: Task, cuts: list[tuple[np.ndarray, int]]) -> Prompts:
    judged = [of.judge(int(tokens[cut + 1]), int(tokens[cut - 1])) for tokens, cut in cuts]
    candidates, correct = (np.stack(sets) for sets in zip(*judged, strict=True))
    shown = [np.where(np.arange(len(tokens)) <= cut, tokens, 0) for tokens, cut in cuts]
    return Prompts(
        torch.from_numpy(np.stack(shown)).long(),
        torch.tensor([cut for _, cut in cuts]),
        torch.from_numpy(candidates),
        torch.from_numpy(correct),
    )


def successes(
    logits: Float[Tensor, "n v"], asked: Prompts, rule: Literal["top", "mass"]
) -> Bool[Tensor, " n"]:
    """Which prompts are answered correctly by these next-token logits."""
    right = logits.masked_fill(~(asked.candidates & asked.correct), -torch.inf)
    wrong = logits.masked_fill(~(asked.candidates & ~asked.correct), -torch.inf)
    if rule == "top":
        return right.amax(-1) > wrong.amax(-1)
    return right.logsumexp(-1) > wrong.logsumexp(-1)


def accuracy(of: Task, logits: Logits, n: int = N_PROMPTS, *, seed: int = 0) -> float:
    """The share of `n` held-out prompts that the model behind `logits` answers correctly."""
    return _share_right(of, prompts(of, n, seed=seed), logits)


def _share_right(of: Task, asked: Prompts, logits: Logits) -> float:
    return float(successes(last_logits(asked, logits), asked, of.rule).double().mean())


def last_logits(asked: Prompts, logits: Logits) -> Float[Tensor, "n v"]:
    """The float32 logits after each prompt; prompts of like length share a forward pass."""
    out = torch.empty(asked.correct.shape)
    for rows in asked.last.argsort(stable=True).split(_BATCH):
        last = asked.last[rows]
        tokens = asked.tokens[rows, : int(last.max()) + 1]
        out[rows] = logits(tokens)[torch.arange(len(last)), last].float().cpu()
    return out


def accuracies(logits: Logits, n: int = N_PROMPTS, *, longest: int = N_CTX) -> dict[str, float]:
    """The accuracy on every task, by name, on prompts of fewer than `longest` tokens."""
    asked = prompts_of_all(TASKS, n, longest=longest)
    return {of.name: _share_right(of, asked[of.name], logits) for of in TASKS}

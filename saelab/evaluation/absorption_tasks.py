"""The labels whose absorption is measured: the grammar's hierarchies, and words' first letters."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from string import ascii_lowercase

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.evaluation.absorption import Task, TaskAbsorption, fit_task_probes, measure_task
from saelab.evaluation.recovery import MIN_POSITIVES
from saelab.evaluation.rows import Rows, Skipped, chosen_rows
from saelab.sae.base import AbstractSAE

HIERARCHIES: dict[str, tuple[str, ...]] = {
    "noun": (*("noun_singular", "noun_plural", "noun_female", "noun_male", "place", "object"),),
    "verb": ("verb_singular", "verb_plural"),
    "name": ("name_female", "name_male"),
    "pronoun": ("pronoun_female", "pronoun_male"),
    "sentiment_word": ("positive_word", "negative_word"),
    "weekday": (*("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),),
    "bracket": ("opening_bracket", "closing_bracket"),
    "innermost_bracket": (
        *("innermost_round", "innermost_square", "innermost_curly", "innermost_angle"),
    ),
    "pending_subject": ("subject_singular", "subject_plural"),
    "referent": ("referent_female", "referent_male"),
    "sentiment_of_document": ("document_positive", "document_negative"),
}
"""General labels as unions of special ones: those of the shipped grammar."""

ROWS_PER_WORD = 20
LEAST_WORDS = 5
"""Of a letter, in either half; SAEBench measures 26 letters on thousands of words."""

_EXPECTED = {
    "hierarchy": (tuple(HIERARCHIES), "The text labels fewer than two of its parts."),
    "first letter": (
        tuple(ascii_lowercase),
        f"It begins fewer than {LEAST_WORDS} words of a half.",
    ),
}
"""All tasks of a kind, and why one is none on some text."""


@dataclass(frozen=True)
class KindMeans:
    """Means over the tasks of one kind, each task counting the same."""

    n_tasks: int
    fraction: float
    full: float


@dataclass(frozen=True)
class Absorption:
    """Feature absorption (arXiv 2409.14507; fraction and full absorption as in SAEBench).

    The formulas are in `absorption.absorbed`, and how the label's own latents are found in
    `absorption.main_latents`. SAEBench fits the probe that gives a letter's direction on other
    words than it scores; so it is for first letters here. On a hierarchy, the direction of a
    general label on one special label's rows comes from a probe that never saw these: it holds what
    the special labels share, and nothing of that special label's own. A probe that finds too few
    unseen rows (F1 < 0.6, or not 0.1 above that of always answering yes) has no direction to speak
    of, and its part is left out. Where the label's own latents find it badly (`main_f1`), there is
    no general latent, and the rates say how far special ones stand in for it.

    Attributes:
        tasks: what was measured; it may be nothing.
        left_out: the reason for everything else, as "kind", "kind: label" or "kind: label (part)".
        means: by kind.
    """

    tasks: list[TaskAbsorption]
    left_out: dict[str, str]
    means: dict[str, KindMeans]


def feature_absorption(
    rows: Rows, sae: AbstractSAE, text_of: Callable[[int], str], *, seed: int
) -> Absorption | Skipped:
    """Absorption of all tasks that a sample of rows allows; skipped where it allows none.

    Args:
        rows: the sample.
        sae: whose codes they hold.
        text_of: a token id's text.
        seed: decides on which words first letters are fitted.
    """
    found: list[TaskAbsorption] = []
    left_out: dict[str, str] = {}
    for kind, here, tasks in (
        ("hierarchy", rows, hierarchy_tasks(rows)),
        ("first letter", *first_letter_tasks(rows, text_of, seed)),
    ):
        if isinstance(tasks, Skipped):
            left_out[kind] = tasks.reason
            continue
        names, reason = _EXPECTED[kind]
        missing = [name for name in names if name not in {task.name for task in tasks}]
        left_out |= {f"{kind}: {name}": reason for name in missing}
        for task, probes in zip(tasks, fit_task_probes(here, tasks), strict=True):
            result, reasons = measure_task(here, sae, task, probes)
            found += [] if result is None else [result]
            for part, reason in reasons.items():
                left_out[f"{kind}: {task.name}" + (f" ({part})" if part else "")] = reason
    if all(":" not in name for name in left_out) and not found:
        return Skipped(" ".join(left_out.values()))
    kinds = dict.fromkeys(task.kind for task in found)
    return Absorption(found, left_out, {kind: _means(found, kind) for kind in kinds})


def hierarchy_tasks(rows: Rows) -> list[Task] | Skipped:
    """One task for every known hierarchy of which the text labels at least two members."""
    if rows.labels is None:
        return Skipped("The text has no ground-truth labels.")
    if _smaller_half(rows) < MIN_POSITIVES:
        return Skipped(f"A half of the {len(rows)} rows has fewer than {MIN_POSITIVES}.")
    place = {name: i for i, name in enumerate(rows.label_names)}
    tasks = []
    for name, members in HIERARCHIES.items():
        parts = {member: rows.labels[:, place[member]] for member in members if member in place}
        if len(parts) > 1:
            label = torch.stack(list(parts.values())).any(dim=0)
            tasks.append(Task("hierarchy", name, label, parts, leave_out=True))
    return tasks or Skipped("The text's labels belong to none of the known hierarchies.")


def first_letter_tasks(
    rows: Rows, text_of: Callable[[int], str], seed: int
) -> tuple[Rows, list[Task] | Skipped]:
    """For every letter, where the row's token is a word that starts with it.

    The halves of the rows that come back share no word, so that a probe must know letters rather
    than words; of a word no more than 20 rows are taken. Whole words of a to z count, from two
    letters on, in any case and with the spaces and marks that tokenizers put before them.
    """
    distinct, place = rows.token.unique(return_inverse=True)
    words = [text_of(int(token)).strip(" \t\n▁Ġ").lower() for token in distinct]
    letter = torch.tensor([_first_letter(word) for word in words])
    spelt = letter >= 0
    draw = torch.Generator().manual_seed(seed)
    fit = torch.rand(len(distinct), generator=draw) < 0.5
    kept = spelt[place] & (occurrence(place) < ROWS_PER_WORD)
    here = replace(
        rows,
        x=rows.x[kept],
        target=None if rows.target is None else rows.target[kept],
        codes=chosen_rows(rows.codes, kept),
        token=rows.token[kept],
        fit=fit[place[kept]],
        labels=None,
        label_names=(),
    )
    tasks = []
    for number in range(26):
        of_letter = letter == number
        fewest = min(int((of_letter & fit).sum()), int((of_letter & ~fit).sum()))
        if fewest >= LEAST_WORDS:
            name = ascii_lowercase[number]
            label = letter[place[kept]] == number
            tasks.append(Task("first letter", name, label, {"": label}, leave_out=False))
    return here, tasks or Skipped(
        f"No letter begins {LEAST_WORDS} words of the text in both halves of its vocabulary."
    )


def _smaller_half(rows: Rows) -> int:
    return min(int(rows.fit.sum()), int((~rows.fit).sum()))


def _first_letter(word: str) -> int:
    """0 for a to 25 for z; -1 for what is no word."""
    is_word = len(word) > 1 and word.isascii() and word.isalpha()
    return ord(word[0]) - ord("a") if is_word else -1


def occurrence(group: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """How many earlier rows belong to the same group."""
    order = group.sort(stable=True).indices
    counts = torch.bincount(group)
    starts = counts.cumsum(0) - counts
    out = torch.empty_like(group)
    out[order] = torch.arange(len(group)) - starts[group[order]]
    return out


def _means(found: list[TaskAbsorption], kind: str) -> KindMeans:
    rates = [task.rate for task in found if task.kind == kind]
    return KindMeans(
        n_tasks=len(rates),
        fraction=sum(rate.fraction for rate in rates) / len(rates),
        full=sum(rate.full for rate in rates) / len(rates),
    )

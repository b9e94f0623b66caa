"""The labels whose absorption is measured: general labels with special ones, first letters."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from string import ascii_lowercase

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saelab.activations.labels import value_groups
from saelab.evaluation.absorption import LabelInParts, TaskAbsorption, fit_task_probes, measure_task
from saelab.evaluation.inputs import Inputs, decoder
from saelab.evaluation.measurement import Column, Measurement
from saelab.evaluation.recovery import MIN_POSITIVES
from saelab.evaluation.rows import NO_LABELS, Rows, Skipped, chosen_rows
from saelab.sae.base import AbstractSAE

ROWS_PER_WORD = 20
LEAST_WORDS = 5
"""Least number of words of a letter in each half; SAEBench measures 26 letters on thousands of
words."""

MOST_PARTS = 256
"""Most parts over all hierarchies, those with the most rows first: each part needs a probe."""


@dataclass(frozen=True)
class KindMeans:
    """Means over the tasks of one kind, with equal weights."""

    n_tasks: int
    fraction: float
    full: float


@dataclass(frozen=True)
class Absorption:
    """Feature absorption (arXiv 2409.14507; fraction and full absorption as in SAEBench).

    `absorption.absorbed` has the formulas, and `absorption.main_latents` finds the label's own
    latents. For first letters, as in SAEBench, the probe is fitted on other words than those
    scored. For hierarchies, the direction of a general label on one special label's rows comes from
    a probe fitted without these rows: it has what the special labels share, and nothing of that
    special label alone. If a probe finds too few unseen rows (F1 < 0.6, or not 0.1 above always
    answering yes), its part is left out. If the label's own latents find it badly (low `main_f1`),
    there is no general latent, and the rates say how far special latents replace it.

    Attributes:
        tasks: the measured tasks; may be empty.
        left_out: the reason for each omission, by "kind", "kind: label" or "kind: label (part)".
        means: the means of each kind.
    """

    tasks: list[TaskAbsorption]
    left_out: dict[str, str]
    means: dict[str, KindMeans]


def feature_absorption(
    rows: Rows, sae: AbstractSAE, text_of: Callable[[int], str] | None, *, seed: int
) -> Absorption | Skipped:
    """Absorption of all tasks that a sample of rows allows; skipped if it allows none.

    Args:
        rows: the sample.
        sae: the SAE that made their codes.
        text_of: maps a token id to its text; None if rows come from no text.
        seed: decides on which words the probes of first letters are fitted.
    """
    found: list[TaskAbsorption] = []
    left_out: dict[str, str] = {}
    letters = (rows, Skipped("Rows without tokens have no words."), {})
    if text_of is not None:
        letters = first_letter_tasks(rows, text_of, seed)
    for kind, (here, tasks, missing) in (
        ("hierarchy", (rows, *hierarchy_tasks(rows))),
        ("first letter", letters),
    ):
        if isinstance(tasks, Skipped):
            left_out[kind] = tasks.reason
            continue
        left_out |= {f"{kind}: {name}": reason for name, reason in missing.items()}
        for task, probes in zip(tasks, fit_task_probes(here, tasks), strict=True):
            result, reasons = measure_task(here, sae, task, probes)
            found += [] if result is None else [result]
            for part, reason in reasons.items():
                left_out[f"{kind}: {task.name}" + (f" ({part})" if part else "")] = reason
    if all(":" not in name for name in left_out) and not found:
        return Skipped(" ".join(left_out.values()))
    kinds = dict.fromkeys(task.kind for task in found)
    return Absorption(found, left_out, {kind: _means(found, kind) for kind in kinds})


def hierarchy_tasks(rows: Rows) -> tuple[list[LabelInParts] | Skipped, dict[str, str]]:
    """General labels with their special ones, and why other labels have none.

    These are: unions that the text names (`rows.hierarchies`), of labels that exist; a field's
    values (`pos=noun`, `pos=verb`) as parts of the field; and labels implied by others on every row
    of the sample.
    """
    if rows.labels is None:
        return Skipped(NO_LABELS), {}
    if _smaller_half(rows) < MIN_POSITIVES:
        return Skipped(f"A half of the {len(rows)} rows has fewer than {MIN_POSITIVES}."), {}
    place = {name: i for i, name in enumerate(rows.label_names)}
    tasks, missing = [], {}
    for name, members in {**value_groups(rows.label_names), **rows.hierarchies}.items():
        parts = {member: rows.labels[:, place[member]] for member in members if member in place}
        if len(parts) > 1:
            label = torch.stack(list(parts.values())).any(dim=0)
            tasks.append(LabelInParts("hierarchy", name, label, parts, leave_out=True))
        else:
            missing[name] = "The text labels fewer than two of its parts."
    # If a text names hierarchies, it names all of them.
    if not rows.hierarchies:
        tasks += implied_tasks(rows.labels, rows.fit, rows.label_names)
    missing |= _too_many_or_idle(tasks)
    kept = [task for task in tasks if task.name not in missing]
    reason = "No label of the text is a part of another, and none has several values."
    return kept or Skipped(reason), missing


def _too_many_or_idle(tasks: list[LabelInParts]) -> dict[str, str]:
    """Why some of these are not measured, by name."""
    missing = {}
    most = sorted(tasks, key=lambda task: -int(task.label.sum()))
    n_parts = accumulate(len(task.parts) for task in most)
    for task, n in zip(most, n_parts, strict=True):
        if n > MOST_PARTS:
            missing[task.name] = f"Labels of more rows have {MOST_PARTS} parts already."
        elif task.label.all():
            missing[task.name] = "It holds on every row."
    return missing


def implied_tasks(
    labels: Bool[Tensor, "row label"], fit: Bool[Tensor, " row"], names: Sequence[str]
) -> list[LabelInParts]:
    """A task for every label that others imply: it holds on all their rows, and on more.

    Parts are the largest such labels. Each part, and the rest of the general label, has enough rows
    in each half. Of equal labels the first counts.
    """
    counts = labels.double()
    both = counts.T @ counts
    size = both.diagonal()
    inside = (both == size[:, None]) & (size[:, None] < size[None, :])
    first = ~((both == size[:, None]) & (both == size[None, :])).tril(-1).any(dim=1)
    enough = torch.stack([labels[half].sum(dim=0) for half in (fit, ~fit)]) >= MIN_POSITIVES
    inside &= (first & enough.all(dim=0))[:, None] & first[None, :]
    # Not through a third label between the two.
    direct = inside & ((inside.double() @ inside.double()) == 0)
    tasks = []
    for general in map(int, direct.any(dim=0).nonzero()):
        label = labels[:, general]
        parts = {}
        for special in map(int, direct[:, general].nonzero()):
            rest = label & ~labels[:, special]
            if min(int((rest & half).sum()) for half in (fit, ~fit)) >= MIN_POSITIVES:
                parts[names[special]] = labels[:, special]
        if parts:
            tasks.append(LabelInParts("hierarchy", names[general], label, parts, leave_out=True))
    return tasks


def first_letter_tasks(
    rows: Rows, text_of: Callable[[int], str], seed: int, *, fit_share: float = 0.5
) -> tuple[Rows, list[LabelInParts] | Skipped, dict[str, str]]:
    """For every letter, the rows whose token is a word that starts with it.

    The two halves of the rows share no word, so a probe must know letters, not words; `fit_share`
    is the first one's share of the words. At most 20
    rows per word are taken. Words of at least two letters a to z count, in upper or lower case,
    with the spaces and marks that tokenizers put before them.
    """
    distinct, place = rows.token.unique(return_inverse=True)
    words = [text_of(int(token)).strip(" \t\n▁Ġ").lower() for token in distinct]
    letter = torch.tensor([_first_letter(word) for word in words])
    spelt = letter >= 0
    draw = torch.Generator().manual_seed(seed)
    fit = torch.rand(len(distinct), generator=draw) < fit_share
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
    tasks, missing = [], {}
    for number, name in enumerate(ascii_lowercase):
        of_letter = letter == number
        fewest = min(int((of_letter & fit).sum()), int((of_letter & ~fit).sum()))
        if fewest >= LEAST_WORDS:
            label = letter[place[kept]] == number
            tasks.append(LabelInParts("first letter", name, label, {"": label}, leave_out=False))
        else:
            missing[name] = f"It begins fewer than {LEAST_WORDS} words of a half."
    reason = f"No letter begins {LEAST_WORDS} words of the text in both halves of its vocabulary."
    return here, tasks or Skipped(reason), missing


def _smaller_half(rows: Rows) -> int:
    return min(int(rows.fit.sum()), int((~rows.fit).sum()))


def _first_letter(word: str) -> int:
    """0 for a to 25 for z; -1 if it is no word."""
    is_word = len(word) > 1 and word.isascii() and word.isalpha()
    return ord(word[0]) - ord("a") if is_word else -1


def occurrence(group: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """For each row, the number of earlier rows of the same group."""
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


def _lines(absorption: Absorption) -> Iterator[tuple[str, ...]]:
    """One row per label: its own latents, its probes, and the rates of absorption."""
    for task in absorption.tasks:
        name, worst = max(task.parts.items(), key=lambda part: part[1].rate.fraction)
        yield (
            task.name if task.kind == "hierarchy" else f"{task.kind} {task.name}",
            f"{task.main_f1:.2f} ({len(task.main)})",
            f"{task.rate.fraction:.1%}",
            f"{task.rate.full:.1%}",
            str(task.rate.n_rows),
            f"{name} {worst.rate.fraction:.0%}" if name else "",
            f"{min(part.probe_f1 for part in task.parts.values()):.2f}",
        )
    for kind, means in absorption.means.items():
        what = f"mean of {means.n_tasks} ({kind})"
        yield what, "", f"{means.fraction:.1%}", f"{means.full:.1%}", "", "", ""


def _left_out(absorption: Absorption) -> Iterator[tuple[str, str]]:
    """Reasons that differ only in a number share a line."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, reason in absorption.left_out.items():
        kind, _, member = name.partition(": ")
        plain = re.sub(r" of \d\.\d\d", "", reason)
        alike.setdefault((plain, kind), []).append(member)
    for (reason, kind), members in alike.items():
        yield f"absorption, {kind}", " ".join([reason, ", ".join(filter(None, members))]).strip()


def _measure(inputs: Inputs) -> Absorption | Skipped:
    text_of = None if inputs.host is None else inputs.lm.tokenizer.token
    return feature_absorption(inputs.rows, inputs.sae, text_of, seed=inputs.options.seed)


ABSORPTION = Measurement(
    "absorption",
    "Do special latents absorb general ones? (0 % is best)",
    _lines,
    measure=_measure,
    result=Absorption,
    columns=(
        Column("label", number=False, shared=True),
        Column("own latents\nF1"),
        Column("absorbed\nin part", style="bold"),
        Column("fully", style="bold"),
        Column("tokens"),
        Column("most absorbed", number=False, style="dim"),
        Column("worst probe\nF1", style="dim"),
    ),
    left_out=_left_out,
    needs=(decoder,),
)

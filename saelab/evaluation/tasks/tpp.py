"""Targeted probe perturbation (TPP) of SAEBench (arXiv 2503.09532, 3.3).

What it measures: whether latents of one class can be removed without the others. Each class has a
linear probe on the mean activation of a text. For each class the n latents of the largest effect on
its probe, clamp(mean z with the class - mean z without it, 0) (W_dec . w), are set to 0, and the
error of the reconstruction stays. The score is the drop of that class's accuracy less the mean drop
of the others', mean over classes.

What misleads: it scores the latents' effect on probes, not on what the model says. With many
latents set to 0 it falls again, since all classes suffer. Probes are logistic regressions at their
minimum; SAEBench stops AdamW early, at the best accuracy on the scored texts. Signed codes are not
clamped, so that turning a latent around changes nothing. Only latents of a positive effect are
removed. SAEBench also removes latents at padding positions, where they have nothing to remove, so
its figures of texts shorter than the longest differ.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import UsageError
from saelab.evaluation.measurement import Measurement
from saelab.evaluation.rows import Rows
from saelab.evaluation.tasks.data import Drawn, LabelledTexts, balanced
from saelab.evaluation.tasks.options import Cost, FigureWithInterval, TaskRules
from saelab.evaluation.tasks.pooled import TextReader
from saelab.evaluation.tasks.removal import (
    GROUPS,
    N_VALUES,
    SHOWN,
    MeanProbe,
    Removal,
    by_number,
    columns_for,
    estimates,
    grouped,
)
from saelab.evaluation.tasks.summary import Headline
from saelab.sae.base import AbstractSAE

LEAST_CLASSES = 3


@dataclass(frozen=True)
class TppTask:
    """Targeted probe perturbation of one data set.

    Attributes:
        clean: the accuracy of each class's probe on its own scored texts.
        total: the score for each of `N_VALUES`; its parts are `intended`, the drop of the class's
            own accuracy, and `unintended`, the mean drop of the others'.
        by_class: the score of each class for each of `N_VALUES`.
    """

    setting: dict[str, Any]
    asked: str
    clean: dict[str, float]
    total: list[FigureWithInterval]
    intended: list[float]
    unintended: list[float]
    by_class: dict[str, list[float]]
    cost: Cost


@dataclass(frozen=True)
class Tpp:
    """Targeted probe perturbation; see `saelab.evaluation.tasks.tpp`."""

    tasks: dict[str, TppTask]

    def headlines(self) -> Iterator[Headline]:
        """The score of each data set."""
        for name, task in self.tasks.items():
            probes = "probes", sum(task.clean.values()) / len(task.clean)
            value = task.total[N_VALUES.index(SHOWN)]
            yield Headline("TPP", name, f"{SHOWN} latents", value, probes, task.cost)


def measure_tpp(
    reader: TextReader,
    data: LabelledTexts,
    rules: TaskRules,
    *,
    asked: str,
    setting: dict[str, Any],
) -> dict[str, TppTask]:
    """Targeted probe perturbation of one data set.

    Raises:
        UsageError: there are fewer than three classes, or too few texts of one.
    """
    (label,) = data.values
    names = data.classes(label)
    if len(names) < LEAST_CLASSES:
        raise UsageError(
            f"{data.name} has {len(names)} classes; TPP compares classes and needs "
            f"{LEAST_CLASSES}: with two, whatever hurts one probe hurts the other."
        )
    costs: list[Cost] = []
    with reader.measured(costs):
        group = [names.index(value) for value in data.values[label]]
        rows, drawn = reader.draw(data, (names, group), rules, setting["seed"])
        found = tpp_of(rows, drawn, names, reader.host.sae, seed=setting["seed"])
    return {data.name: TppTask(setting, asked, **found, cost=costs[0])}


def tpp_of(
    rows: Rows, drawn: Drawn, names: Sequence[str], sae: AbstractSAE, *, seed: int
) -> dict[str, Any]:
    """The fields of a `TppTask`."""
    halves = [balanced(drawn, i, seed) for i in range(len(names))]
    probes = [MeanProbe.on(rows, train, label) for train, _, label in halves]
    removal = Removal(rows, sae)
    # For each class removed and each class scored: right answers before, after each n, and texts.
    sums = torch.zeros(GROUPS, len(names), len(names), len(N_VALUES) + 2, dtype=torch.float64)
    for i, (train, _, label) in enumerate(halves):
        here = torch.zeros(len(label), dtype=torch.bool)
        here[train] = True
        scores = removal.scores(probes, removal.effects(probes[i], label, here, clamp=True))
        for j, (_, test, truth) in enumerate(halves):
            right = [(each[test, j] > 0) == truth[test] for each in scores]
            sums[:, i, j] = grouped(test, right)
    parts = _tpp_parts(sums.sum(dim=0))
    accuracy = sums.sum(dim=0)
    return {
        "clean": {
            name: float(accuracy[i, i, 0] / accuracy[i, i, -1]) for i, name in enumerate(names)
        },
        "total": estimates(sums, _tpp_score),
        "intended": parts[0].mean(dim=0).tolist(),
        "unintended": parts[1].mean(dim=0).tolist(),
        "by_class": {names[i]: (parts[0] - parts[1])[i].tolist() for i in range(len(names))},
    }


def _tpp_parts(
    sums: Float[Tensor, "removed scored figure"],
) -> tuple[Float[Tensor, "removed n"], Float[Tensor, "removed n"]]:
    """The drop of each class's own accuracy, and the mean drop of the others', for each n."""
    accuracy = sums[..., :-1] / sums[..., -1:]
    drop = accuracy[..., :1] - accuracy[..., 1:]
    own = drop.diagonal().T
    return own, (drop.sum(dim=1) - own) / (len(drop) - 1)


def _tpp_score(sums: Float[Tensor, "removed scored figure"]) -> Float[Tensor, " n"]:
    own, others = _tpp_parts(sums)
    return (own - others).mean(dim=0)


def _tpp_lines(tpp: Tpp) -> Iterator[tuple[str, ...]]:
    for name, task in tpp.tasks.items():
        clean = sum(task.clean.values()) / len(task.clean)
        yield f"{name} ({len(task.clean)})", f"{clean:.1%}", *by_number(task.total)


TPP = Measurement(
    "task_tpp",
    "Can one class be removed alone? (TPP in %, for the number of latents)",
    _tpp_lines,
    result=Tpp,
    suite="tasks",
    columns=columns_for("data (classes)", "probes'\naccuracy"),
)

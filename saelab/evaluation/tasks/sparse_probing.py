"""Sparse probing of labelled texts: how well a few latents tell a text's label.

What it measures: whether the SAE has few latents for a property that somebody named. On the fitted
texts, latents are ranked by how much their activation differs between the classes, and a logistic
regression reads the first k = 1, 2, 5, 16. The other texts are scored, as often of one class as of
the other, so 50 % is chance (SAEBench, arXiv 2503.09532; sae-probes, arXiv 2502.16681).

What misleads: a figure alone says little. A dense probe of the activations says how much is there
to find, the best k channels what is found without any SAE, one direction (the difference of means)
what a supervised method finds, random latents what any latents tell. A label that the text's words
give away is found by latents of these words. Many latents are compared on the fitted texts, so k
latents of a wide SAE overfit if these are few. Texts that repeat would be fitted and scored at
once: they are left out, which the two papers' code does not do.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.evaluation.measurement import Column, Measurement
from saelab.evaluation.probing import code_moments, moments, rank
from saelab.evaluation.rows import Rows, active_entries, columns
from saelab.evaluation.tasks.data import Drawn, LabelledTexts, balanced
from saelab.evaluation.tasks.options import Cost, FigureWithInterval, TaskRules
from saelab.evaluation.tasks.pooled import TextReader
from saelab.evaluation.tasks.probes import (
    Score,
    dense,
    few_columns,
    mean_difference,
    mean_over_tasks,
    score,
)
from saelab.evaluation.tasks.summary import Headline

KS = (1, 2, 5, 16)
RANDOM_DRAWS = 5
KINDS = ("latents", "channels", "random")


@dataclass(frozen=True)
class ProbedTask:
    """One class against the others.

    Attributes:
        setting: how it was measured: rules, length, sizes, seed.
        asked: digest of the setting and of the data.
        positive: the class that is probed for.
        n_train, n_test: texts, half of them of this class.
        best: the latents for the largest k, best first; smaller k use the first of them.
        latents, channels, random: scores for each of `KS`, with the best latents, the best
            coordinates of the activations, and random latents that fire (mean of five draws).
        mean_difference: score of one direction, the difference of the class means.
        dense: score of a logistic regression on the whole activation.
        cost: of all classes of its data together.
    """

    setting: dict[str, Any]
    asked: str
    positive: str
    n_train: int
    n_test: int
    best: list[int]
    latents: list[Score]
    channels: list[Score]
    random: list[Score]
    mean_difference: Score
    dense: Score
    cost: Cost


@dataclass(frozen=True)
class TaskProbing:
    """Sparse probing of labelled texts; see `saelab.evaluation.tasks.sparse_probing`.

    Attributes:
        tasks: the tasks by name; `DATA: CLASS` if there are more than two classes.
        accuracy, auroc: by the name of the rules, then by kind (latents, channels, random,
            mean_difference, dense): means over tasks, for the first three one for each k.
    """

    tasks: dict[str, ProbedTask]
    accuracy: dict[str, dict[str, list[FigureWithInterval]]]
    auroc: dict[str, dict[str, list[FigureWithInterval]]]

    def headlines(self) -> Iterator[Headline]:
        """The accuracy of most latents on each task, and the means."""
        what, told = f"best {KS[-1]}", set()
        for name, task in self.tasks.items():
            # Classes of one data set were measured together.
            cost = None if task.asked in told else task.cost
            told.add(task.asked)
            last = task.latents[-1]
            value = FigureWithInterval(last.accuracy, last.low, last.high)
            yield Headline("probing", name, what, value, ("dense", task.dense.accuracy), cost)
        for rules, means in self.accuracy.items():
            value, dense = means["latents"][-1], means["dense"][0].value
            yield Headline("probing", f"mean of {rules}", what, value, ("dense", dense))


def probing_of(tasks: dict[str, ProbedTask]) -> TaskProbing:
    """The result of these tasks."""
    by_rules: dict[str, list[ProbedTask]] = {}
    for task in tasks.values():
        by_rules.setdefault(task.setting["rules"], []).append(task)
    means = [
        {rules: _means(own, figure) for rules, own in by_rules.items()}
        for figure in ("accuracy", "auroc")
    ]
    return TaskProbing(tasks, *means)


def _means(tasks: list[ProbedTask], figure: str) -> dict[str, list[FigureWithInterval]]:
    scores = {
        **{kind: [getattr(task, kind) for task in tasks] for kind in KINDS},
        "mean_difference": [[task.mean_difference] for task in tasks],
        "dense": [[task.dense] for task in tasks],
    }
    return {
        kind: [
            mean_over_tasks([getattr(found, figure) for found in one])
            for one in zip(*found, strict=True)
        ]
        for kind, found in scores.items()
    }


def probe_data(
    reader: TextReader,
    data: LabelledTexts,
    rules: TaskRules,
    *,
    asked: str,
    setting: dict[str, Any],
) -> dict[str, ProbedTask]:
    """The tasks of one data set; a label of two classes makes one, of more one for each class.

    Raises:
        UsageError: a class has too few texts.
    """
    (label,) = data.values
    names = data.classes(label)
    costs: list[Cost] = []
    with reader.measured(costs):
        group = [names.index(value) for value in data.values[label]]
        rows, drawn = reader.draw(data, (names, group), rules, setting["seed"])
        found = {}
        for i in [1] if len(names) == 2 else range(len(names)):
            name = data.name if len(names) == 2 else f"{data.name}: {names[i]}"
            found[name] = names[i], probe_class(rows, drawn, i, rules, seed=setting["seed"])
    return {
        name: ProbedTask(setting, asked, positive, **values, cost=costs[0])
        for name, (positive, values) in found.items()
    }


def probe_class(rows: Rows, drawn: Drawn, i: int, rules: TaskRules, *, seed: int) -> dict[str, Any]:
    """The scores of class `i` against the others: fields of a `ProbedTask`."""
    train, test, label = balanced(drawn, i, seed)
    here = torch.zeros(len(label), dtype=torch.bool)
    here[train] = True
    best = rank(*_compared(code_moments(rows.codes, label[:, None], here), rows, here, rules), 16)
    channels = rank(*_channels(rows, label, here, rules), 16)
    generator = torch.Generator().manual_seed(seed)
    firing = active_entries(rows.codes)[1].unique()
    drawn_latents = [
        firing[torch.randperm(len(firing), generator=generator)[: max(KS)]]
        for _ in range(RANDOM_DRAWS)
    ]
    fit = _FitAndScore(label, train, test)
    by_random = [fit.few(columns(rows.codes, latents)) for latents in drawn_latents]
    return {
        "n_train": len(train),
        "n_test": len(test),
        "best": best[0].tolist(),
        "latents": fit.few(columns(rows.codes, best[0])),
        "channels": fit.few(rows.x[:, channels[0]].double()),
        "random": [_mean_score(of_k) for of_k in zip(*by_random, strict=True)],
        "mean_difference": fit.linear(mean_difference, rows.x),
        "dense": fit.linear(dense, rows.x),
    }


def _compared(
    found: tuple[Float[Tensor, "column 1"], Float[Tensor, " column"]],
    rows: Rows,
    here: Bool[Tensor, " text"],
    rules: TaskRules,
) -> tuple[Float[Tensor, "column 1"], Float[Tensor, " column"]]:
    """Differences of means, and what they are divided by to rank latents."""
    difference, deviation = found
    if rules.ranking == "difference":
        return difference, (deviation > 0).double()
    row, latent, value = active_entries(rows.codes)
    on = here[row]
    total, count = (
        torch.zeros(len(deviation), dtype=torch.float64).index_add_(0, latent[on], v)
        for v in (value[on].double().abs(), torch.ones(int(on.sum()), dtype=torch.float64))
    )
    return difference, total / count.clamp_min(1)


def _channels(
    rows: Rows, label: Bool[Tensor, " text"], here: Bool[Tensor, " text"], rules: TaskRules
) -> tuple[Float[Tensor, "column 1"], Float[Tensor, " column"]]:
    difference, deviation = moments(rows.x, label[:, None], here)
    if rules.ranking == "difference":
        return difference, (deviation > 0).double()
    return difference, rows.x[here].double().abs().mean(dim=0)


@dataclass(frozen=True)
class _FitAndScore:
    """Fits on some texts and scores others."""

    label: Bool[Tensor, " text"]
    train: Int[Tensor, " train"]
    test: Int[Tensor, " test"]

    def few(self, x: Float[Tensor, "text k"]) -> list[Score]:
        """The score of the first k columns, for each of `KS`."""
        found = []
        for k in KS:
            probe = few_columns(x[self.train, :k], self.label[self.train])
            found.append(score(probe(x[self.test, :k]), self.label[self.test]))
        return found

    def linear(self, method: Any, x: Float[Tensor, "text d"]) -> Score:  # noqa: ANN401 - a fit
        weights, bias = method(x[self.train], self.label[self.train])
        return score(x[self.test].to(weights.dtype) @ weights + bias, self.label[self.test])


def _mean_score(found: Iterable[Score]) -> Score:
    fields = [(s.accuracy, s.low, s.high, s.auroc, s.f1) for s in found]
    return Score(*(sum(values) / len(values) for values in zip(*fields, strict=True)))


def _lines(probing: TaskProbing) -> Iterator[tuple[str, ...]]:
    for name, task in probing.tasks.items():
        shown = [
            *task.latents,
            task.channels[-1],
            task.random[-1],
            task.mean_difference,
            task.dense,
        ]
        yield name, str(task.n_test), *(f"{each.accuracy:.1%}" for each in shown)
    for rules in probing.accuracy:
        n = sum(task.setting["rules"] == rules for task in probing.tasks.values())
        means, areas = (
            [*found[rules]["latents"], *(found[rules][kind][-1] for kind in LAST)]
            for found in (probing.accuracy, probing.auroc)
        )
        yield f"mean of {n}", rules, *(f"{one.value:.1%}" for one in means)
        # Both ends beside each other are wider than the columns have room for.
        for end, name, said in (("low", "  from", "95 %"), ("high", "  to", "")):
            found = [getattr(one, end) for one in means]
            if None not in found:
                yield name, said, *(f"{share:.1%}" for share in found)
        yield "  AUROC", "", *(f"{one.value:.3f}" for one in areas)


LAST = ("channels", "random", "mean_difference", "dense")


PROBING = Measurement(
    "task_probing",
    "How well do latents tell a text's label? (accuracy, 50 % is chance)",
    _lines,
    result=TaskProbing,
    suite="tasks",
    columns=(
        Column("task", number=False, shared=True),
        Column("scored", shared=True),
        Column("best\nlatent", style="bold"),
        Column("best\n2"),
        Column("best\n5"),
        Column("best\n16", style="bold"),
        Column("16\nchannels"),
        Column("16 random\nlatents"),
        Column("mean\ndifference"),
        Column("dense\nprobe"),
    ),
)

"""Spurious correlation removal (SCR) of SAEBench (arXiv 2503.09532, after SHIFT, 2403.19647).

What it measures: whether latents of a spurious label can be removed from a probe that learned it. A
probe is fitted on texts where two labels agree. The n latents of the largest |effect| on a probe of
one label are set to 0, and the error of the reconstruction stays. The score is how much of the way
from the biased probe's accuracy on the other label to that of an unbiased probe is made up. It is
that of the label on which the biased probe is worse. 100 % is best; below 0 the accuracy fell.

What misleads: it scores the latents' effect on probes, not on what the model says. It divides by
the gap between two accuracies, so there is no score where the gap's 95 % interval reaches 0: the
biased probe must be clearly worse than an unbiased one. SAEBench gives a score wherever the gap is
0.001 or more. Probes are logistic regressions at their minimum; SAEBench stops
AdamW early, at the best accuracy on the scored texts, and also removes latents at padding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from saelab.config import UsageError
from saelab.evaluation.measurement import Measurement
from saelab.evaluation.rows import Rows
from saelab.evaluation.tasks.data import Drawn, LabelledTexts
from saelab.evaluation.tasks.options import Cost, FigureWithInterval, TaskRules
from saelab.evaluation.tasks.pooled import TextReader
from saelab.evaluation.tasks.removal import (
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


@dataclass(frozen=True)
class ScrDirection:
    """One of the two labels, restored by removing latents of the other.

    Attributes:
        clean, biased: accuracy on this label of its own probe, and of the biased probe.
        score: for each of `N_VALUES`; none if the gap is not clear.
        gap: `clean` - `biased`.
    """

    clean: float
    biased: float
    score: list[FigureWithInterval]
    gap: FigureWithInterval | None = None


@dataclass(frozen=True)
class ScrTask:
    """Spurious correlation removal of one data set.

    Attributes:
        chosen: the label on which the biased probe is worse; its score counts, if it has one.
        directions: both labels.
    """

    setting: dict[str, Any]
    asked: str
    chosen: str
    directions: dict[str, ScrDirection]
    cost: Cost


@dataclass(frozen=True)
class Scr:
    """Spurious correlation removal; see `saelab.evaluation.tasks.scr`."""

    tasks: dict[str, ScrTask]

    def headlines(self) -> Iterator[Headline]:
        """The score of both labels of each data set; the one that counts is marked."""
        for name, task in self.tasks.items():
            for i, (label, one) in enumerate(task.directions.items()):
                value = one.score[N_VALUES.index(SHOWN)] if one.score else None
                called, what = f"{name}: {label}", f"{SHOWN} latents"
                data, gap = called + " *" * (label == task.chosen), ("gap", one.clean - one.biased)
                cost = None if i else task.cost
                yield Headline("SCR", data, what, value, gap, cost, name=called)


def measure_scr(
    reader: TextReader,
    data: LabelledTexts,
    rules: TaskRules,
    *,
    asked: str,
    setting: dict[str, Any],
) -> dict[str, ScrTask]:
    """Spurious correlation removal of one data set, whose texts have two labels of two classes.

    Raises:
        UsageError: a label has other than two classes, or a pair of them too few texts.
    """
    labels = list(data.values)
    pairs = {label: data.classes(label) for label in labels}
    for label, names in pairs.items():
        if len(names) != 2:
            raise UsageError(f"{label!r} of {data.name} has {len(names)} classes; SCR needs two.")
    costs: list[Cost] = []
    with reader.measured(costs):
        one, other = (
            [value == pairs[label][1] for value in data.values[label]] for label in labels
        )
        group = [2 * a + b for a, b in zip(one, other, strict=True)]
        names = [f"{a} and {b}" for a in pairs[labels[0]] for b in pairs[labels[1]]]
        rows, drawn = reader.draw(data, (names, group), rules, setting["seed"])
        directions = scr_of(rows, drawn, labels, reader.host.sae)
    chosen = min(labels, key=lambda label: directions[label].biased)
    return {data.name: ScrTask(setting, asked, chosen, directions, costs[0])}


def scr_of(
    rows: Rows, drawn: Drawn, labels: Sequence[str], sae: AbstractSAE
) -> dict[str, ScrDirection]:
    """Both directions; group 2 a + b has the classes a and b of the two labels."""
    truths = [drawn.group >= 2, drawn.group % 2 == 1]
    agree = truths[0] == truths[1]
    biased = MeanProbe.on(rows, drawn.fit & agree, truths[0])
    own = [MeanProbe.on(rows, drawn.fit, truth) for truth in truths]
    removal, test = Removal(rows, sae), (~drawn.fit).nonzero()[:, 0]
    found = {}
    for i, label in enumerate(labels):
        effects = removal.effects(own[1 - i], truths[1 - i], drawn.fit).abs()
        scores = removal.scores([biased, own[i]], effects)
        right = [(scores[0][test, 1] > 0) == truths[i][test]]
        right += [(each[test, 0] > 0) == truths[i][test] for each in scores]
        sums = grouped(test, right)
        clean, before = (sums.sum(dim=0)[:2] / sums.sum(dim=0)[-1]).tolist()
        gap = estimates(sums, _gap)[0]
        clear = gap.value > 0 if gap.low is None else gap.low > 0
        found[label] = ScrDirection(clean, before, estimates(sums, _restored) if clear else [], gap)
    return found


def _gap(sums: Float[Tensor, " figure"]) -> Float[Tensor, " n"]:
    """How much worse the biased probe is than the clean one; the same for each n."""
    return ((sums[0] - sums[1]) / sums[-1]).expand(len(N_VALUES))


def _restored(sums: Float[Tensor, " figure"]) -> Float[Tensor, " n"]:
    """How much of the gap between the biased and the clean accuracy is made up, for each n."""
    accuracy = sums[:-1] / sums[-1]
    return (accuracy[2:] - accuracy[1]) / (accuracy[0] - accuracy[1])


def _scr_lines(scr: Scr) -> Iterator[tuple[str, ...]]:
    for name, task in scr.tasks.items():
        for label, one in task.directions.items():
            yield (
                f"{name}: {label}" + (" *" if label == task.chosen else ""),
                f"{one.biased:.1%} of {one.clean:.1%}",
                *(by_number(one.score) if one.score else ["-"] * len(N_VALUES)),
            )


def _left_out(scr: Scr) -> Iterator[tuple[str, str]]:
    for name, task in scr.tasks.items():
        for label, one in task.directions.items():
            if not one.score:
                reason = (
                    f"The biased probe ({one.biased:.1%}) is not clearly worse than an unbiased "
                    f"one ({one.clean:.1%}), so there is no gap to make up; take more texts, or "
                    "labels that a probe can tell."
                )
                yield f"SCR, {name}: {label}", reason


SCR = Measurement(
    "task_scr",
    "Can a spurious label be removed? (SCR in %, for the number of latents)",
    _scr_lines,
    result=Scr,
    suite="tasks",
    columns=columns_for("restored label (* counts)", "biased probe\nof clean"),
    left_out=_left_out,
)

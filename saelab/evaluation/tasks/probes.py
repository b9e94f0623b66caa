"""Probes of one label with two classes, and what they score."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.evaluation.jackknife import Z, student
from saelab.evaluation.logistic import fit_logistic
from saelab.evaluation.probe import auroc, f1_score, fit_probes
from saelab.evaluation.tasks.options import FigureWithInterval

Scores = Float[Tensor, " row"]
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Tried l2 penalties of a dense probe; the one of the best AUROC on a fifth of the fitted rows."""
ROUNDED = 0.05
"""In %: less than this is not seen."""


@dataclass(frozen=True)
class Score:
    """How well a probe tells two classes on rows that it was not fitted on.

    Attributes:
        accuracy: share of right answers; the classes are equally frequent, so 0.5 is chance.
        low, high: its 95 % interval over the scored rows (Wilson).
        auroc: 0.5 is chance.
        f1: of the class that is probed for.
    """

    accuracy: float
    low: float
    high: float
    auroc: float
    f1: float


def score(scores: Scores, label: Bool[Tensor, " row"]) -> Score:
    """The score of answers `scores > 0`."""
    answer = scores > 0
    accuracy = float((answer == label).double().mean())
    low, high = wilson(accuracy, len(label))
    return Score(accuracy, low, high, auroc(scores, label), f1_score(answer, label))


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of `n` rows (Wilson 1927)."""
    over = 1 + Z**2 / n
    middle = (share + Z**2 / (2 * n)) / over
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n * n)) / over
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_over_tasks(values: Sequence[float]) -> FigureWithInterval:
    """The mean of shares, one of each task, with a 95 % interval if there are three or more.

    It is Student's, cut to what a share can be: what is left covers as often.
    """
    found = torch.tensor(values, dtype=torch.float64)
    mean = float(found.mean())
    if len(found) < 3:
        return FigureWithInterval(mean)
    half = float(student(torch.tensor(len(found) - 1)) * found.std() / math.sqrt(len(found)))
    return FigureWithInterval(mean, max(0.0, mean - half), min(1.0, mean + half))


def few_columns(x: Float[Tensor, "row k"], label: Bool[Tensor, " row"]) -> Callable[..., Scores]:
    """A logistic regression on raw columns with the penalty ||w||^2 / 2 beside the summed loss.

    That is scikit-learn's default (C = 1), which SAEBench uses.
    """
    weights = fit_logistic(x[None], label[None], l2=1 / (2 * len(x)), standardise=False)[0]
    return lambda rows: rows.double() @ weights[:-1] + weights[-1]


def dense(
    x: Float[Tensor, "row d"], label: Bool[Tensor, " row"]
) -> tuple[Float[Tensor, " d"], float]:
    """Weights and bias of a logistic regression on all columns."""
    held = torch.arange(len(x)) % 5 == 0
    best, chosen = -1.0, PENALTIES[-1]
    # The larger penalty wins a tie.
    for l2 in reversed(PENALTIES):
        weights, bias = fit_probes(x[~held], label[~held, None], l2=l2)
        found = auroc((x[held] @ weights + bias)[:, 0], label[held])
        if found > best:
            best, chosen = found, l2
    weights, bias = fit_probes(x, label[:, None], l2=chosen)
    return weights[:, 0], float(bias)


def mean_difference(
    x: Float[Tensor, "row d"], label: Bool[Tensor, " row"]
) -> tuple[Float[Tensor, " d"], float]:
    """The difference of the class means, and the bias that puts the threshold half way."""
    wide = x.double()
    one, other = wide[label].mean(dim=0), wide[~label].mean(dim=0)
    weights = one - other
    return weights, float(-(one + other) @ weights / 2)


def spread(estimate: FigureWithInterval) -> str:
    """The interval in %: its half, as ±5.2, or both ends where these are not equally far away."""
    if estimate.low is None or estimate.high is None:
        return "-"
    low, value, high = (100 * end for end in (estimate.low, estimate.value, estimate.high))
    half = (high - low) / 2
    # Else the figure and what is beside it would name an end that is none, such as 106 %.
    equal = abs(value - half - low) < ROUNDED
    return f"±{half:.1f}" if equal else f"[{low:.1f}, {high:.1f}]"


def interval(estimate: FigureWithInterval) -> str:
    """The figure in %, with its interval if it has one."""
    text = f"{100 * estimate.value:.1f}"
    return text if estimate.low is None else f"{text} {spread(estimate)}"

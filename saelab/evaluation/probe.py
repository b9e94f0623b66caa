"""Linear probes: how much of a label is linearly present, independent of the SAE."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

GRADIENT = 1e-5
"""Norm of a label's gradient at which its fit ends. The loss is then within GRADIENT^2 / (4 l2) of
the minimum (2.5e-7 nats), since the penalty makes it strongly convex."""
MOST_STEPS = 100
MOST_DIRECTIONS = 20
HALVINGS = 20
ROUNDING = 1e-7


def fit_probes(
    x: Float[Tensor, "row d_in"],
    labels: Bool[Tensor, "row label"],
    *,
    counted: Bool[Tensor, "row label"] | None = None,
    l2: float = 1e-4,
) -> tuple[Float[Tensor, "d_in label"], Float[Tensor, " label"]]:
    """Weights and biases of one logistic regression per label, each to its minimum.

    Rows are standardised internally; the result is for raw rows: the score of a row is `x @ weights
    + bias`. `l2` is the penalty on the standardised weights. Rows that are not `counted` for a
    label are left out of its mean loss.

    The method is truncated Newton, for all labels at once. Along the principal axes of the rows a
    label's curvature is nearly diagonal, so a step needs few conjugate-gradient iterations. A
    converged label costs nothing more.
    """
    if not labels.shape[1]:
        return x.new_zeros(x.shape[1], 0), x.new_zeros(0)
    mean, scale = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
    standard = (x - mean) / scale
    variance, axes = torch.linalg.eigh((standard.T @ standard).double() / len(x))
    axes = axes.to(x.dtype)
    rows = F.pad(standard @ axes, (0, 1), value=1.0)
    penalty = F.pad(rows.new_full((x.shape[1], 1), 2 * l2), (0, 0, 0, 1))
    spread = F.pad(variance.clamp_min(0).to(x.dtype)[:, None], (0, 0, 0, 1), value=1.0)
    weights = rows.new_zeros(rows.shape[1], labels.shape[1])
    left = torch.arange(labels.shape[1], device=x.device)
    for _ in range(MOST_STEPS):
        share = None if counted is None else counted[:, left]
        fit = _Fit(rows, labels[:, left].to(x.dtype), _shares(share, rows), penalty, spread)
        weights[:, left], far = fit.step(weights[:, left])
        left = left[far]
        if not len(left):
            break
    raw = axes @ weights[:-1] / scale[:, None]
    return raw, weights[-1] - mean @ raw


def _shares(
    counted: Bool[Tensor, "row label"] | None, rows: Float[Tensor, "row k"]
) -> Float[Tensor, "row #label"]:
    """Each row's weight in a label's mean loss."""
    if counted is None:
        return rows.new_full((len(rows), 1), 1 / len(rows))
    return counted.to(rows.dtype) / counted.sum(dim=0).clamp_min(1)


@dataclass(frozen=True)
class _Fit:
    """Logistic regressions on the same rows, whose last column is 1.

    Attributes:
        share: each row's weight in a label's mean loss.
        penalty: twice the l2 of each weight.
        spread: mean square of each column.
    """

    rows: Float[Tensor, "row k"]
    target: Float[Tensor, "row label"]
    share: Float[Tensor, "row #label"]
    penalty: Float[Tensor, "k 1"]
    spread: Float[Tensor, "k 1"]

    def step(
        self, weights: Float[Tensor, "k label"]
    ) -> tuple[Float[Tensor, "k label"], Bool[Tensor, " label"]]:
        """The weights after a Newton step, and which labels had not converged before it."""
        scores = self.rows @ weights
        p = scores.sigmoid()
        slope = self.rows.T @ ((p - self.target) * self.share) + self.penalty * weights
        far = slope.norm(dim=0) > GRADIENT
        direction = self._newton(slope, p * (1 - p) * self.share)
        along = self.rows @ direction
        size, worse = torch.ones_like(slope[0]), torch.zeros_like(far)
        before = self._loss(scores, weights)
        for _ in range(HALVINGS):
            after = self._loss(scores - size * along, weights - size * direction)
            worse = after > before * (1 + ROUNDING)
            if not bool(worse.any()):
                break
            size = torch.where(worse, size / 2, size)
        else:
            # No part of the step lowers the loss: it is at its minimum up to rounding.
            far, size = far & ~worse, torch.where(worse, 0.0, size)
        return weights - size * direction, far

    def _newton(
        self, slope: Float[Tensor, "k label"], curvature: Float[Tensor, "row label"]
    ) -> Float[Tensor, "k label"]:
        """The Newton step by conjugate gradients; more exact when the slope is smaller."""
        diagonal = (self.spread * curvature.sum(dim=0) + self.penalty).clamp_min(1e-12)
        size = slope.norm(dim=0)
        enough = size * size.sqrt().clamp_max(0.1)
        step, rest = torch.zeros_like(slope), slope
        ahead = rest / diagonal
        direction, product = ahead, (rest * ahead).sum(dim=0)
        for _ in range(MOST_DIRECTIONS):
            bent = self.rows.T @ (curvature * (self.rows @ direction)) + self.penalty * direction
            length = product / (direction * bent).sum(dim=0).clamp_min(1e-30)
            step, rest = step + length * direction, rest - length * bent
            if bool((rest.norm(dim=0) <= enough).all()):
                break
            ahead = rest / diagonal
            product, old = (rest * ahead).sum(dim=0), product
            direction = ahead + product / old.clamp_min(1e-30) * direction
        return step

    def _loss(
        self, scores: Float[Tensor, "row label"], weights: Float[Tensor, "k label"]
    ) -> Float[Tensor, " label"]:
        fit = F.binary_cross_entropy_with_logits(scores, self.target, reduction="none")
        loss = (fit * self.share).sum(dim=0, dtype=torch.float64)
        return loss + (self.penalty / 2 * weights.pow(2)).sum(dim=0, dtype=torch.float64)


def auroc(scores: Float[Tensor, " row"], label: Bool[Tensor, " row"]) -> float:
    """Probability that a random row with the label scores above one without; ties count half."""
    n_positive = int(label.sum())
    n_negative = len(label) - n_positive
    _, group, sizes = scores.double().unique(return_inverse=True, return_counts=True)
    mid_rank = sizes.cumsum(0).double() - (sizes.double() - 1) / 2
    rank_sum = float(mid_rank[group[label]].sum())
    if not n_positive or not n_negative:
        return float("nan")
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def best_threshold(scores: Float[Tensor, " row"], label: Bool[Tensor, " row"]) -> float:
    """The threshold on scores with the best F1."""
    ordered, order = scores.sort(descending=True)
    caught = label[order].cumsum(0)
    answered = torch.arange(1, len(label) + 1, device=label.device)
    f1 = 2 * caught / (answered + int(label.sum()))
    # Rows of equal score get equal answers, so a threshold lies below the last of them.
    ends = ordered != torch.cat([ordered[1:], ordered.new_full((1,), -torch.inf)])
    return float(ordered[torch.where(ends, f1, -1).argmax()])


def f1_score(answer: Bool[Tensor, " row"], label: Bool[Tensor, " row"]) -> float:
    """F1 = 2 TP / (yes answers + positives); 0 if there are neither."""
    return 2 * int((answer & label).sum()) / max(1, int(answer.sum()) + int(label.sum()))


@dataclass(frozen=True)
class ProbeScore:
    """How well scores find a label on rows that they were not fitted on.

    Attributes:
        f1: F1 at the threshold that was best on the fitted rows.
        auroc: 0.5 is chance.
    """

    f1: float
    auroc: float


def score_probe(
    scores: Float[Tensor, " row"], label: Bool[Tensor, " row"], fit: Bool[Tensor, " row"]
) -> ProbeScore:
    """The threshold is chosen on the rows of `fit`; the figures are of the other rows."""
    answer = scores[~fit] >= best_threshold(scores[fit], label[fit])
    return ProbeScore(f1_score(answer, label[~fit]), auroc(scores[~fit], label[~fit]))

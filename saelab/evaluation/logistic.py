"""Logistic regressions on a few columns, many at once, by Newton's method."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

SMALLEST_SCALE = 1e-12
TOLERANCE = 1e-10
ROUNDING = 1e-12
"""Increase of a loss that counts as rounding; otherwise steps at the minimum would be halved."""
HALVINGS = 30


def fit_logistic(
    x: Float[Tensor, "task row k"],
    y: Bool[Tensor, "task row"],
    *,
    l2: float = 1e-4,
    iterations: int = 60,
    standardise: bool = True,
    balanced: bool = False,
) -> Float[Tensor, "task k+1"]:
    """Weights of each task's k raw columns, followed by its bias, in float64.

    Each minimises mean_n BCE(w . s_n + b, y_n) + l2 ||w||^2 over its standardised columns s, the
    objective of `probe.fit_probes`; s are the raw columns if it does not `standardise`. It is
    strictly convex, and steps that do not lower it are halved, so Newton's method ends at the only
    minimum, even if the columns separate the label perfectly. If `balanced`, the rows with the
    label weigh as much in the mean as the others together; both must be there.
    """
    mean, scale = x.double().mean(dim=1, keepdim=True), x.double().std(dim=1, keepdim=True)
    # A constant column carries no information; its weight stays 0.
    scale = torch.where(scale > SMALLEST_SCALE, scale, torch.inf)
    if not standardise:
        scale = torch.where(scale.isfinite(), 1.0, torch.inf)
    standard = F.pad((x.double() - mean) / scale, (0, 1), value=1.0)
    share = _balanced(y) if balanced else torch.full_like(standard[..., 0], 1 / x.shape[1])
    penalty = F.pad(standard.new_full((x.shape[2],), l2), (0, 1))
    weights = _Regressions(standard, y.double(), share, penalty).newton(iterations)
    raw = weights[:, :-1] / scale[:, 0]
    bias = weights[:, -1:] - (raw * mean[:, 0]).sum(dim=1, keepdim=True)
    return torch.cat([raw, bias], dim=1)


def logistic_scores(
    x: Float[Tensor, "task row k"], weights: Float[Tensor, "task k+1"]
) -> Float[Tensor, "task row"]:
    """The score of every row: above 0 if the label is more likely than not."""
    return (x.double() @ weights[:, :-1, None])[..., 0] + weights[:, -1:]


def _balanced(y: Bool[Tensor, "task row"]) -> Float[Tensor, "task row"]:
    n = y.double().sum(dim=1, keepdim=True)
    return torch.where(y, 1 / (2 * n), 1 / (2 * (y.shape[1] - n)))


@dataclass(frozen=True)
class _Regressions:
    """Logistic regressions, each on its own rows, whose last column is 1.

    Attributes:
        share: each row's weight in the loss.
        penalty: the l2 of each column.
    """

    x: Float[Tensor, "task row k1"]
    y: Float[Tensor, "task row"]
    share: Float[Tensor, "task row"]
    penalty: Float[Tensor, " k1"]

    def newton(self, iterations: int) -> Float[Tensor, "task k1"]:
        """The weights at the minimum."""
        weights = self.x.new_zeros(len(self.x), self.x.shape[2])
        loss = self._loss(weights)
        for _ in range(iterations):
            weights, new = self._descend(weights, self._step(weights), loss)
            improved = bool((loss - new > TOLERANCE).any())
            loss = new
            if not improved:
                break
        return weights

    def _step(self, weights: Float[Tensor, "task k1"]) -> Float[Tensor, "task k1"]:
        x = self.x
        p = (x @ weights[..., None])[..., 0].sigmoid()
        gradient = (((p - self.y) * self.share)[:, None] @ x)[:, 0] + 2 * self.penalty * weights
        curvature = (p * (1 - p)).clamp_min(1e-12) * self.share
        hessian = x.mT @ (x * curvature[..., None]) + torch.diag(2 * self.penalty)
        return torch.linalg.solve(hessian, gradient)

    def _descend(
        self,
        weights: Float[Tensor, "task k1"],
        step: Float[Tensor, "task k1"],
        loss: Float[Tensor, " task"],
    ) -> tuple[Float[Tensor, "task k1"], Float[Tensor, " task"]]:
        """Each task's step: the largest of whole, half, quarter, ... that does not raise its loss.

        A task without such a step does not move.
        """
        size, worse = torch.ones_like(loss), torch.zeros_like(loss, dtype=torch.bool)
        for _ in range(HALVINGS):
            new = self._loss(weights - size[:, None] * step)
            worse = new > loss + ROUNDING
            if not bool(worse.any()):
                return weights - size[:, None] * step, new
            size = torch.where(worse, size / 2, size)
        size = torch.where(worse, 0.0, size)
        weights = weights - size[:, None] * step
        return weights, self._loss(weights)

    def _loss(self, weights: Float[Tensor, "task k1"]) -> Float[Tensor, " task"]:
        scores = (self.x @ weights[..., None])[..., 0]
        fit = F.binary_cross_entropy_with_logits(scores, self.y, reduction="none")
        return (fit * self.share).sum(dim=1) + (self.penalty * weights.pow(2)).sum(dim=1)

"""Logistic regressions on a few columns, many at once, by Newton's method."""

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
) -> Float[Tensor, "task k+1"]:
    """Weights of each task's k raw columns, followed by its bias, in float64.

    Each minimises mean_n BCE(w . s_n + b, y_n) + l2 ||w||^2 over its standardised columns s, the
    objective of `probe.fit_probes`; s are the raw columns if it does not `standardise`. It is
    strictly convex, and steps that do not lower it are halved, so Newton's method ends at the only
    minimum, even if the columns separate the label perfectly.
    """
    mean, scale = x.double().mean(dim=1, keepdim=True), x.double().std(dim=1, keepdim=True)
    # A constant column carries no information; its weight stays 0.
    scale = torch.where(scale > SMALLEST_SCALE, scale, torch.inf)
    if not standardise:
        scale = torch.where(scale.isfinite(), 1.0, torch.inf)
    standard = F.pad((x.double() - mean) / scale, (0, 1), value=1.0)
    weights = _newton(standard, y.double(), l2, iterations)
    raw = weights[:, :-1] / scale[:, 0]
    bias = weights[:, -1:] - (raw * mean[:, 0]).sum(dim=1, keepdim=True)
    return torch.cat([raw, bias], dim=1)


def logistic_scores(
    x: Float[Tensor, "task row k"], weights: Float[Tensor, "task k+1"]
) -> Float[Tensor, "task row"]:
    """The score of every row: above 0 if the label is more likely than not."""
    return (x.double() @ weights[:, :-1, None])[..., 0] + weights[:, -1:]


def _newton(
    x: Float[Tensor, "task row k1"], y: Float[Tensor, "task row"], l2: float, iterations: int
) -> Float[Tensor, "task k1"]:
    penalty = torch.full((x.shape[2],), l2, dtype=x.dtype, device=x.device)
    penalty[-1] = 0
    weights = x.new_zeros(len(x), x.shape[2])
    loss = _loss(x, y, weights, penalty)
    for _ in range(iterations):
        step = _step(x, y, weights, penalty)
        weights, new = _descend(x, y, weights, step, penalty, loss)
        improved = bool((loss - new > TOLERANCE).any())
        loss = new
        if not improved:
            break
    return weights


def _step(
    x: Float[Tensor, "task row k1"],
    y: Float[Tensor, "task row"],
    weights: Float[Tensor, "task k1"],
    penalty: Float[Tensor, " k1"],
) -> Float[Tensor, "task k1"]:
    p = (x @ weights[..., None])[..., 0].sigmoid()
    gradient = ((p - y)[:, None] @ x)[:, 0] / x.shape[1] + 2 * penalty * weights
    curvature = (p * (1 - p)).clamp_min(1e-12)
    hessian = x.mT @ (x * curvature[..., None]) / x.shape[1] + torch.diag(2 * penalty)
    return torch.linalg.solve(hessian, gradient)


def _descend(
    x: Float[Tensor, "task row k1"],
    y: Float[Tensor, "task row"],
    weights: Float[Tensor, "task k1"],
    step: Float[Tensor, "task k1"],
    penalty: Float[Tensor, " k1"],
    loss: Float[Tensor, " task"],
) -> tuple[Float[Tensor, "task k1"], Float[Tensor, " task"]]:
    """Each task's step: the largest of whole, half, quarter, ... that does not raise its loss.

    A task without such a step does not move.
    """
    size, worse = torch.ones_like(loss), torch.zeros_like(loss, dtype=torch.bool)
    for _ in range(HALVINGS):
        new = _loss(x, y, weights - size[:, None] * step, penalty)
        worse = new > loss + ROUNDING
        if not bool(worse.any()):
            return weights - size[:, None] * step, new
        size = torch.where(worse, size / 2, size)
    size = torch.where(worse, 0.0, size)
    weights = weights - size[:, None] * step
    return weights, _loss(x, y, weights, penalty)


def _loss(
    x: Float[Tensor, "task row k1"],
    y: Float[Tensor, "task row"],
    weights: Float[Tensor, "task k1"],
    penalty: Float[Tensor, " k1"],
) -> Float[Tensor, " task"]:
    scores = (x @ weights[..., None])[..., 0]
    fit = F.binary_cross_entropy_with_logits(scores, y, reduction="none").mean(dim=1)
    return fit + (penalty * weights.pow(2)).sum(dim=1)

"""Linear probes: how much of a label is linearly present, whatever the SAE makes of it."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F


def fit_probes(
    x: Float[Tensor, "row d_in"],
    labels: Bool[Tensor, "row label"],
    *,
    counted: Bool[Tensor, "row label"] | None = None,
    l2: float = 1e-4,
    iterations: int = 60,
) -> tuple[Float[Tensor, "d_in label"], Float[Tensor, " label"]]:
    """Weights and biases of one logistic regression per label, fitted together by L-BFGS.

    The rows are standardised inside, and the result is given back for raw rows: the score of a
    row is `x @ weights + bias`. `l2` is the penalty on the standardised weights. Rows that are not
    `counted` for a label are left out of its mean loss.
    """
    if not labels.shape[1]:
        return x.new_zeros(x.shape[1], 0), x.new_zeros(0)
    share = None if counted is None else counted / counted.sum(dim=0).clamp_min(1)
    mean, scale = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
    standard, target = (x - mean) / scale, labels.float()
    weights = torch.zeros(x.shape[1], labels.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(labels.shape[1], device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights, bias], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        scores = standard @ weights + bias
        # Summed over labels, since each label's problem is its own.
        loss = F.binary_cross_entropy_with_logits(scores, target, reduction="none")
        loss = loss.mean(0).sum() if share is None else (loss * share).sum()
        loss = loss + l2 * weights.pow(2).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    raw = weights.detach() / scale[:, None]
    return raw, bias.detach() - mean @ raw


def auroc(scores: Float[Tensor, " row"], label: Bool[Tensor, " row"]) -> float:
    """Chance that a random row with the label scores above one without; ties count one half."""
    n_positive = int(label.sum())
    n_negative = len(label) - n_positive
    _, group, sizes = scores.double().unique(return_inverse=True, return_counts=True)
    mid_rank = sizes.cumsum(0).double() - (sizes.double() - 1) / 2
    rank_sum = float(mid_rank[group[label]].sum())
    if not n_positive or not n_negative:
        return float("nan")
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def best_threshold(scores: Float[Tensor, " row"], label: Bool[Tensor, " row"]) -> float:
    """The score from which answering yes has the best F1."""
    ordered, order = scores.sort(descending=True)
    caught = label[order].cumsum(0)
    answered = torch.arange(1, len(label) + 1, device=label.device)
    f1 = 2 * caught / (answered + int(label.sum()))
    # Rows of equal score are answered alike, so a threshold stands below the last of them.
    ends = ordered != torch.cat([ordered[1:], ordered.new_full((1,), -torch.inf)])
    return float(ordered[torch.where(ends, f1, -1).argmax()])


def f1_score(answer: Bool[Tensor, " row"], label: Bool[Tensor, " row"]) -> float:
    """2 TP / (yes answers + positives); 0 where there is neither."""
    return 2 * int((answer & label).sum()) / max(1, int(answer.sum()) + int(label.sum()))


@dataclass(frozen=True)
class ProbeScore:
    """How well scores find a label on rows they were not fitted on.

    Attributes:
        f1: at the threshold that was best where they were fitted.
        auroc: 0.5 is chance.
    """

    f1: float
    auroc: float


def score_probe(
    scores: Float[Tensor, " row"], label: Bool[Tensor, " row"], fit: Bool[Tensor, " row"]
) -> ProbeScore:
    """The threshold from the rows of `fit`, the figures from the others."""
    answer = scores[~fit] >= best_threshold(scores[fit], label[fit])
    return ProbeScore(f1_score(answer, label[~fit]), auroc(scores[~fit], label[~fit]))

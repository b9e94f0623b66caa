"""First-letter absorption by the rules of SAEBench 0.6 (arXiv 2503.09532, 3.4).

What differs from saelab's own rules (`saelab.evaluation.absorption`):

- A letter's direction is that of a probe on raw activations, which 50 epochs of Adam stop before
  its minimum. It answers yes above 0, and its letter counts if its F1 is above 0.6.
- A letter's own latents have the largest weights of an L1 probe on all latents. The first k of
  them are kept: k grows while the F1 of a balanced logistic regression on them rises by more than
  0.03. SAEBench takes this F1 on the words that are scored, and so do these rules.
  The L1 probe takes 50 steps for each 4,096 fitted words: with few words its first random weights
  decide, and a letter's own latents find it badly.
- Latents take their share of x . w, where saelab's take theirs of (x - b_dec) . w.

SAEBench asks for decoder rows of unit length: codes are scaled as if they had it. Its words may
repeat in another case, and each has solved examples of its own. Here they are as in
`saelab.evaluation.tasks.letters`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from saelab.evaluation.absorption import (
    F1_JUMP,
    LEAST_PROBE_F1,
    MOST_MAIN,
    LabelInParts,
    PartAbsorption,
    Rate,
    TaskAbsorption,
    absorbed,
    signed_latents,
)
from saelab.evaluation.logistic import fit_logistic, logistic_scores
from saelab.evaluation.probe import f1_score
from saelab.evaluation.rows import Rows, chosen_rows, columns, poles
from saelab.sae.base import AbstractSAE
from saelab.types import SparseCodes

EPOCHS = 50
FIRST_RATE, LAST_RATE = 1e-2, 1e-5
"""Adam's rate falls by the same factor after every epoch."""


class Recipe(NamedTuple):
    """How probes are trained.

    Attributes:
        batch: rows of a step.
        decay: Adam's weight decay, which is part of the gradient.
        l1: the factor of a probe's sum of absolute weights in the loss.
    """

    batch: int
    decay: float
    l1: float


DENSE = Recipe(64, 1e-4, 0.0)
SPARSE = Recipe(4096, 1e-6, 0.01)

Weights = Float[Tensor, "column label"]
ScoresOf = Callable[[Int[Tensor, " batch"], Weights], Float[Tensor, "batch label"]]


def measure_by_saebench(
    rows: Rows, sae: AbstractSAE, tasks: Sequence[LabelInParts], seed: int
) -> tuple[list[TaskAbsorption], dict[str, str]]:
    """The absorption of each letter, and the reasons for those that have none."""
    fit, labels = rows.fit, torch.stack([task.label for task in tasks], dim=1)
    draw = torch.Generator().manual_seed(seed)
    x = rows.wanted[fit]
    weights, bias = train_probes(
        lambda some, w: x[some] @ w, x.shape[1], labels[fit], DENSE, draw=draw
    )
    codes = _of_unit_rows(rows.codes, sae)
    order = _by_weight(chosen_rows(codes, fit), labels[fit], draw)
    found: list[TaskAbsorption] = []
    left_out: dict[str, str] = {}
    for i, task in enumerate(tasks):
        answer = rows.wanted @ weights[:, i] + bias[i] > 0
        probe_f1 = f1_score(answer[~fit], task.label[~fit])
        if probe_f1 <= LEAST_PROBE_F1:
            left_out[task.name] = (
                f"The probe's F1 of {probe_f1:.2f} on unseen rows is not above {LEAST_PROBE_F1}."
            )
            continue
        main, main_f1 = own_latents(codes, order[:, i], task.label, fit)
        where = ~fit & task.label & answer
        fraction, full = absorbed(
            chosen_rows(rows.codes, where),
            rows.wanted[where],
            sae,
            direction=weights[:, i],
            main=main,
            of_whole=True,
        )
        rate = Rate(len(fraction), float(fraction.mean()), float(full.double().mean()))
        parts = {name: PartAbsorption(probe_f1, rate) for name in task.parts}
        latents = signed_latents(main, rows.codes.d_sae)
        found.append(TaskAbsorption(task.kind, task.name, latents, main_f1, parts, rate))
    return found, left_out


def train_probes(
    scores_of: ScoresOf,
    n_columns: int,
    labels: Bool[Tensor, "row label"],
    recipe: Recipe,
    *,
    draw: torch.Generator,
) -> tuple[Weights, Float[Tensor, " label"]]:
    """Weights and biases of a linear probe for each label, after `EPOCHS` of Adam.

    The loss is the mean cross-entropy over rows and labels, where a label's positive rows weigh as
    much as its others, and the L1 penalty, mean over labels. Each label must hold on some row.

    Args:
        scores_of: the scores of some rows, without the bias.
        n_columns: columns of the weights.
        labels: what the rows are.
        recipe: batches and penalties.
        draw: draws the first weights, and the order of rows in each epoch.
    """
    wide = labels.shape[1]
    target, balance = labels.float(), (~labels).sum(dim=0) / labels.sum(dim=0)
    with torch.enable_grad():
        first = (2 * torch.rand(n_columns + 1, wide, generator=draw) - 1) / n_columns**0.5
        weights, bias = (part.clone().requires_grad_() for part in (first[:-1], first[-1]))
        adam = torch.optim.Adam([weights, bias], lr=FIRST_RATE, weight_decay=recipe.decay)
        rates = torch.optim.lr_scheduler.ExponentialLR(
            adam, (LAST_RATE / FIRST_RATE) ** (1 / EPOCHS)
        )
        for _ in range(EPOCHS):
            for some in torch.randperm(len(labels), generator=draw).split(recipe.batch):
                scores = scores_of(some, weights) + bias
                loss = F.binary_cross_entropy_with_logits(scores, target[some], pos_weight=balance)
                loss = loss + recipe.l1 * weights.abs().sum(dim=0).mean()
                adam.zero_grad()
                loss.backward()
                adam.step()
            rates.step()
    return weights.detach(), bias.detach()


def own_latents(
    codes: SparseCodes,
    order: Int[Tensor, " candidate"],
    label: Bool[Tensor, " row"],
    fit: Bool[Tensor, " row"],
) -> tuple[Int[Tensor, " main"], float]:
    """The first of the candidates that make a label's own latents, and their F1 on unseen rows.

    The regression is scikit-learn's with balanced classes, which SAEBench uses: 1/2 ||w||^2 beside
    the summed loss of raw columns.
    """
    best, kept = -torch.inf, 0
    values = columns(codes, order)[None]
    l2 = 1 / (2 * int(fit.sum()))
    for k in range(1, len(order) + 1):
        few = values[..., :k]
        weights = fit_logistic(
            few[:, fit], label[None, fit], l2=l2, standardise=False, balanced=True
        )
        answer = logistic_scores(few[:, ~fit], weights)[0] > 0
        f1 = f1_score(answer, label[~fit])
        if f1 <= best + F1_JUMP:
            break
        best, kept = f1, k
    return order[:kept], best


def _of_unit_rows(codes: SparseCodes, sae: AbstractSAE) -> SparseCodes:
    """Non-negative codes for decoder rows of unit length; poles only if codes are signed."""
    norm = sae.W_dec.detach().float().cpu().norm(dim=1)
    scaled = SparseCodes(codes.values.float() * norm[codes.indices], codes.indices, codes.d_sae)
    return poles(scaled) if bool((codes.values < 0).any()) else scaled


def _by_weight(
    codes: SparseCodes, labels: Bool[Tensor, "row label"], draw: torch.Generator
) -> Int[Tensor, "candidate label"]:
    """The latents of the largest weights of each label's L1 probe, the largest first."""

    def scores_of(some: Int[Tensor, " batch"], weights: Weights) -> Float[Tensor, "batch label"]:
        values, indices = codes.values[some], codes.indices[some].long()
        return F.embedding_bag(indices, weights, per_sample_weights=values, mode="sum")

    weights, _ = train_probes(scores_of, codes.d_sae, labels, SPARSE, draw=draw)
    return weights.topk(min(MOST_MAIN, codes.d_sae), dim=0).indices

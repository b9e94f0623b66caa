"""Feature absorption: a general latent is silent because a special latent fires instead.

Everything is measured at the site that the SAE writes: for a transcoder, at its target.

Signed codes are split into poles (`rows.poles`): a latent's positive and negative firings are two
non-negative latents with opposite decoder rows. For non-negative codes nothing changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from saelab.evaluation.logistic import fit_logistic, logistic_scores
from saelab.evaluation.probe import best_threshold, f1_score, fit_probes
from saelab.evaluation.probing import code_moments
from saelab.evaluation.recovery import MIN_POSITIVES
from saelab.evaluation.rows import Rows, chosen_rows, columns, poles
from saelab.sae.base import AbstractSAE
from saelab.types import SparseCodes

# The thresholds of SAEBench (arXiv 2503.09532; absorption as in arXiv 2409.14507).
LEAST_PROBE_F1 = 0.6
LEAST_GAIN = 0.1
"""Least gain of a probe's F1 over always answering yes, which is high for frequent labels."""
MOST_MAIN = 10
F1_JUMP = 0.03
ABSORBER_COSINE = 0.1
FULL_COSINE = 0.025
N_ABSORBERS = 3
LEAST_SHARE = 0.4


@dataclass(frozen=True)
class LabelInParts:
    """A label whose absorption is measured, part by part.

    Attributes:
        kind: "hierarchy" or "first letter".
        name: the label's name.
        label: the rows where it holds.
        parts: parts of the label by name, e.g. more special labels.
        leave_out: whether the probe for a part is fitted without that part. This is needed if parts
            have directions of their own, which would count as the label's. A split by words needs
            no such exclusion.
    """

    kind: str
    name: str
    label: Bool[Tensor, " row"]
    parts: Mapping[str, Bool[Tensor, " row"]]
    leave_out: bool


@dataclass(frozen=True)
class Rate:
    """Absorption over some rows: mean fraction, and rate of full absorption."""

    n_rows: int
    fraction: float
    full: float


@dataclass(frozen=True)
class PartAbsorption:
    """Absorption on one part of a label.

    Attributes:
        probe_f1: F1 of the probe that gives the label's direction, on unseen rows of the part and
            unseen rows without the label.
        rate: absorption over unseen rows of the part that the probe recognises.
    """

    probe_f1: float
    rate: Rate


@dataclass(frozen=True)
class TaskAbsorption:
    """How much of a label is absorbed.

    Attributes:
        main: the label's own latents, each with the sign of its firings for the label.
        main_f1: F1 of a logistic regression on them, on unseen rows.
        parts: absorption of each part, by name.
        rate: absorption over the rows of all parts.
    """

    kind: str
    name: str
    main: list[tuple[int, int]]
    main_f1: float
    parts: dict[str, PartAbsorption]
    rate: Rate


@dataclass(frozen=True)
class Probe:
    """A linear probe: a unit direction and a bias."""

    direction: Float[Tensor, " d_in"]
    bias: float


def fit_task_probes(
    rows: Rows, tasks: Sequence[LabelInParts], *, l2: float = 1e-4
) -> list[dict[str, Probe]]:
    """The direction of each task's label on each part, fitted together on `rows.fit`."""
    here = rows.fit
    pairs = [(task, part) for task in tasks for part in task.parts.values()]
    labels = torch.stack([task.label[here] for task, _ in pairs], dim=1)
    counted = torch.stack([~(part & task.leave_out)[here] for task, part in pairs], dim=1)
    weights, bias = fit_probes(rows.wanted[here], labels, counted=counted, l2=l2)
    norm = weights.norm(dim=0).clamp_min(1e-30)
    found = (Probe(w, b) for w, b in zip((weights / norm).T, (bias / norm).tolist(), strict=True))
    return [{name: next(found) for name in task.parts} for task in tasks]


def measure_task(
    rows: Rows, sae: AbstractSAE, task: LabelInParts, probes: Mapping[str, Probe]
) -> tuple[TaskAbsorption | None, dict[str, str]]:
    """The absorption of one label, and the reasons for parts, or all, that have no result.

    Latents are chosen, probes fitted and thresholds set on the rows of `rows.fit`; absorption is
    counted on the other rows.
    """
    main, main_f1 = main_latents(poles(rows.codes), task.label, rows.fit)
    if not len(main):
        reason = "No latent fires more where the label holds than where it does not."
        return None, dict.fromkeys(task.parts, reason)
    parts: dict[str, PartAbsorption] = {}
    left_out: dict[str, str] = {}
    for name, probe in probes.items():
        found = _measure_part(rows, sae, task, name, probe=probe, main=main)
        if isinstance(found, str):
            left_out[name] = found
        else:
            parts[name] = found
    latents = signed_latents(main, rows.codes.d_sae)
    rate = _pooled([part.rate for part in parts.values()])
    result = TaskAbsorption(task.kind, task.name, latents, main_f1, parts, rate)
    return result if rate.n_rows else None, left_out


def _measure_part(
    rows: Rows, sae: AbstractSAE, task: LabelInParts, name: str, *, probe: Probe, main: Tensor
) -> PartAbsorption | str:
    part, fit = task.parts[name], rows.fit
    if min(int((part & fit).sum()), int((part & ~fit).sum())) < MIN_POSITIVES:
        return (
            f"It is on fewer than {MIN_POSITIVES} rows of a half; --n-sample (evaluate) or "
            "--n-words (tasks --letters) takes more, if there are."
        )
    scores = rows.wanted @ probe.direction + probe.bias
    known, unseen = (half & (part | ~task.label) for half in (fit, ~fit))
    answer = scores >= best_threshold(scores[known], part[known])
    probe_f1 = f1_score(answer[unseen], part[unseen])
    if probe_f1 < LEAST_PROBE_F1:
        return f"The probe's F1 of {probe_f1:.2f} on unseen rows is below {LEAST_PROBE_F1}."
    always = f1_score(unseen[unseen], part[unseen])
    if probe_f1 < always + LEAST_GAIN:
        return f"The probe's F1 of {probe_f1:.2f} on unseen rows is hardly above chance."
    where = ~fit & part & answer
    fraction, full = absorbed(
        chosen_rows(rows.codes, where),
        rows.wanted[where],
        sae,
        direction=probe.direction,
        main=main,
    )
    n = len(fraction)
    return PartAbsorption(probe_f1, Rate(n, float(fraction.mean()), float(full.double().mean())))


def main_latents(
    codes: SparseCodes, label: Bool[Tensor, " row"], fit: Bool[Tensor, " row"]
) -> tuple[Int[Tensor, " main"], float]:
    """The latents that represent a label, and the F1 of a probe on them on unseen rows.

    Candidates fire more where the label holds, ordered by the difference of means over the
    deviation. Each is added while it raises the F1 of a logistic regression on the rows of `fit` by
    more than 0.03; so a label that is split over several latents has several.
    """
    difference, deviation = code_moments(codes, label[:, None], fit)
    score = difference[:, 0] / torch.where(deviation > 0, deviation, torch.inf)
    order = score.sort(descending=True, stable=True).indices[:MOST_MAIN]
    order = order[score[order] > 0]
    best, kept, unseen = -F1_JUMP, 0, 0.0
    values = columns(codes, order)
    for k in range(1, len(order) + 1):
        few = values[None, :, :k]
        scores = logistic_scores(few, fit_logistic(few[:, fit], label[None, fit]))[0]
        answer = scores >= best_threshold(scores[fit], label[fit])
        f1 = f1_score(answer[fit], label[fit])
        if f1 - best <= F1_JUMP:
            break
        best, kept, unseen = f1, k, f1_score(answer[~fit], label[~fit])
    return order[:kept], unseen


def absorbed(
    codes: SparseCodes,
    x: Float[Tensor, "row d_in"],
    sae: AbstractSAE,
    *,
    direction: Float[Tensor, " d_in"],
    main: Int[Tensor, " main"],
    of_whole: bool = False,
) -> tuple[Float[Tensor, " row"], Bool[Tensor, " row"]]:
    """The absorption fraction of every row, and which are fully absorbed.

    With the unit direction w, latent i contributes c_i = z_i (W_dec[i] . w) to P = (x - b_dec) . w,
    where b_dec's share belongs to no latent; `of_whole`, P = x . w as in SAEBench. M = sum of c
    over the main latents, T = sum of the three largest c > 0 of others whose pole has a cosine >=
    0.1 with w. Fraction: 0 if M >= P or T < 0.4 P, else 1 if M <= 0, else a / (a + M), a = min(T, P
    - M). Full: no main latent fires, and the largest c is >= 0.4 P, of a pole with a cosine >=
    0.025. Both are 0 if P <= 0. `main` are poles; `codes` are rectangular.
    """
    w = F.normalize(direction.double(), dim=0)
    # A slot that never fires, so that rows of silent codes have one.
    values, indices = F.pad(codes.values, (0, 1)), F.pad(codes.indices, (0, 1))
    codes = SparseCodes(values, indices, codes.d_sae)
    W_dec = sae.W_dec.detach().double().cpu()
    along = W_dec @ w
    cosine = along / W_dec.norm(dim=1).clamp_min(1e-30)
    resting = 0.0 if of_whole else sae.resting(x.to(sae.W_dec)).detach().double().cpu()
    present = (x.double() - resting) @ w
    share = codes.values.double() * along[codes.indices]
    leaning = codes.values.sign().double() * cosine[codes.indices]
    is_main = torch.isin(poles(codes).indices, main) & codes.active
    of_main = (share * is_main).sum(dim=1)
    could = (leaning >= ABSORBER_COSINE) & (share > 0) & ~is_main
    n = min(N_ABSORBERS, share.shape[1])
    taken = (share * could).topk(n, dim=1).values.sum(dim=1)
    rest = torch.minimum(taken, present - of_main)
    part = rest / (rest + of_main).clamp_min(1e-30)
    fraction = torch.where(of_main <= 0, 1.0, part)
    none = (present <= 0) | (of_main >= present) | (taken < LEAST_SHARE * present)
    top = share.masked_fill(~codes.active, -torch.inf).max(dim=1)
    leads = leaning.gather(1, top.indices[:, None])[:, 0] >= FULL_COSINE
    enough = (present > 0) & (top.values >= LEAST_SHARE * present)
    return torch.where(none, 0.0, fraction), ~is_main.any(dim=1) & leads & enough


def signed_latents(main: Int[Tensor, " main"], d_sae: int) -> list[tuple[int, int]]:
    """The latents of these poles, each with its sign."""
    return [(pole % d_sae, 1 if pole < d_sae else -1) for pole in map(int, main)]


def _pooled(rates: Sequence[Rate]) -> Rate:
    n = sum(rate.n_rows for rate in rates)
    fraction, full = (
        sum(rate.n_rows * value for rate, value in zip(rates, values, strict=True)) / max(1, n)
        for values in ([rate.fraction for rate in rates], [rate.full for rate in rates])
    )
    return Rate(n, fraction, full)

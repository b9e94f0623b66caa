"""Sparse probing: how well a few latents together tell what is true of a token."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.evaluation.inputs import labels
from saelab.evaluation.logistic import fit_logistic, logistic_scores
from saelab.evaluation.measurement import Column, Measurement
from saelab.evaluation.probe import ProbeScore, fit_probes, score_probe
from saelab.evaluation.recovery import MIN_POSITIVES, common_labels
from saelab.evaluation.rows import NO_LABELS, Rows, Skipped, active_entries, columns
from saelab.types import SparseCodes

KS = (1, 2, 5)
LABELS_AT_ONCE = 16


@dataclass(frozen=True)
class LabelProbing:
    """One label, probed with the best k latents, the best k channels, and the whole activation.

    Attributes:
        frequency: share of the rows where it holds.
        latents: those of the largest k, best first; a smaller k takes the first of them.
        channels: likewise, coordinates of the activations.
        by_latents, by_channels: the scores for each of `SparseProbing.ks`.
        dense: of a probe of the whole activation.
    """

    label: str
    frequency: float
    latents: list[int]
    channels: list[int]
    by_latents: list[ProbeScore]
    by_channels: list[ProbeScore]
    dense: ProbeScore


@dataclass(frozen=True)
class SparseProbing:
    """k-sparse probing of every label (as in SAEBench, arXiv 2503.09532).

    On one half of the contexts, latents are ranked by |mean where the label holds - mean where it
    does not| over their standard deviation, a logistic regression (L2 1e-4 on standardised columns)
    is fitted to the first k, and a threshold is set; the other half is scored. SAEBench pools texts
    and does not divide by the deviation; here a row is a token, and rescaling a latent, or turning
    it around, changes nothing. The signed value of a latent is one column.

    Attributes:
        n_rows: rows of both halves.
        ks: how many latents a probe reads.
        labels: every label frequent enough.
        too_rare: the others.
        mean_f1, mean_auroc: over labels, of `latents`, `channels` (for each k) and `dense` (once).
    """

    n_rows: int
    ks: list[int]
    labels: list[LabelProbing]
    too_rare: list[str]
    mean_f1: dict[str, list[float]]
    mean_auroc: dict[str, list[float]]


def sparse_probing(rows: Rows) -> SparseProbing | Skipped:
    """Probe every label of a sample of rows; skipped where the text has no labels."""
    if rows.labels is None:
        return Skipped(NO_LABELS)
    common = common_labels(rows.labels.numpy(), rows.fit.numpy())
    if not len(common):
        return Skipped(
            f"No label has {MIN_POSITIVES} rows with and without it in both halves of the "
            f"{len(rows)} rows; raise --n-sample."
        )
    found = list(_probe(rows, common))
    rare = [name for i, name in enumerate(rows.label_names) if i not in set(common.tolist())]
    return SparseProbing(
        n_rows=len(rows),
        ks=list(KS),
        labels=found,
        too_rare=rare,
        mean_f1=_means([[[s.f1 for s in part] for part in _parts(label)] for label in found]),
        mean_auroc=_means([[[s.auroc for s in part] for part in _parts(label)] for label in found]),
    )


def _probe(rows: Rows, common: Int[np.ndarray, " common"]) -> Iterator[LabelProbing]:
    assert rows.labels is not None
    labels, fit = rows.labels[:, torch.from_numpy(common)], rows.fit
    names = [rows.label_names[i] for i in common]
    weights, bias = fit_probes(rows.x[fit], labels[fit])
    dense = rows.x @ weights + bias
    latents = best_latents(rows.codes, labels, fit, max(KS))
    channels = rank(*moments(rows.x, labels, fit), max(KS))
    for first in range(0, len(names), LABELS_AT_ONCE):
        part = slice(first, first + LABELS_AT_ONCE)
        truth = labels[:, part]
        of_latents = _scores(_latent_columns(rows.codes, latents[part]), truth, fit)
        of_channels = _scores(rows.x.T[channels[part]].mT.double(), truth, fit)
        for i in range(truth.shape[1]):
            yield LabelProbing(
                label=names[first + i],
                frequency=float(truth[:, i].double().mean()),
                latents=latents[first + i].tolist(),
                channels=channels[first + i].tolist(),
                by_latents=of_latents[i],
                by_channels=of_channels[i],
                dense=score_probe(dense[:, first + i], truth[:, i], fit),
            )


def best_latents(
    codes: SparseCodes, labels: Bool[Tensor, "row label"], fit: Bool[Tensor, " row"], k: int
) -> Int[Tensor, "label k"]:
    """For each label the `k` latents whose value differs most with it, on the rows of `fit`."""
    return rank(*code_moments(codes, labels, fit), k)


def rank(
    difference: Float[Tensor, "column label"], deviation: Float[Tensor, " column"], k: int
) -> Int[Tensor, "label k"]:
    """The columns of the largest |difference| / deviation, best first; constant columns last."""
    score = difference.abs().T / torch.where(deviation > 0, deviation, torch.inf)
    # A stable sort, so that ties do not depend on the machine.
    order = score.sort(dim=1, descending=True, stable=True).indices
    return order[:, : min(k, order.shape[1])]


def code_moments(
    codes: SparseCodes, labels: Bool[Tensor, "row label"], fit: Bool[Tensor, " row"]
) -> tuple[Float[Tensor, "d_sae label"], Float[Tensor, " d_sae"]]:
    """mean(z | label) - mean(z | no label) and the deviation of z on the rows of `fit`."""
    row, latent, value = active_entries(codes)
    here = fit[row]
    row, latent, value = row[here], latent[here], value[here].double()
    with_label = torch.zeros(codes.d_sae, labels.shape[1], dtype=torch.float64)
    for first in range(0, len(row), 2**16):
        part = slice(first, first + 2**16)
        with_label.index_add_(0, latent[part], value[part, None] * labels[row[part]])
    total, squares = (
        torch.zeros(codes.d_sae, dtype=torch.float64).index_add_(0, latent, v)
        for v in (value, value**2)
    )
    return _difference(with_label, total, squares, labels[fit])


def moments(
    x: Float[Tensor, "row d_in"], labels: Bool[Tensor, "row label"], fit: Bool[Tensor, " row"]
) -> tuple[Float[Tensor, "d_in label"], Float[Tensor, " d_in"]]:
    """The same of dense columns."""
    # Deviations do not depend on where the columns are centred, but their rounding does.
    wide = x[fit].double()
    wide = wide - wide.mean(dim=0)
    with_label = wide.T @ labels[fit].double()
    return _difference(with_label, wide.sum(dim=0), wide.pow(2).sum(dim=0), labels[fit])


def _difference(
    with_label: Float[Tensor, "column label"],
    total: Float[Tensor, " column"],
    squares: Float[Tensor, " column"],
    labels: Bool[Tensor, "row label"],
) -> tuple[Float[Tensor, "column label"], Float[Tensor, " column"]]:
    n, positive = len(labels), labels.sum(dim=0).double()
    without = (total[:, None] - with_label) / (n - positive).clamp_min(1)
    variance = (squares / n - (total / n) ** 2).clamp_min(0)
    return with_label / positive.clamp_min(1) - without, variance.sqrt()


def _latent_columns(
    codes: SparseCodes, latents: Int[Tensor, "label k"]
) -> Float[Tensor, "label row k"]:
    distinct, place = latents.unique(return_inverse=True)
    return columns(codes, distinct).T[place].mT


def _scores(
    x: Float[Tensor, "label row k"], truth: Bool[Tensor, "row label"], fit: Bool[Tensor, " row"]
) -> list[list[ProbeScore]]:
    """For each label and each of `KS`, a logistic regression of the first k columns."""
    by_k = []
    for k in KS:
        few = x[:, :, :k]
        weights = fit_logistic(few[:, fit], truth[fit].T)
        by_k.append(logistic_scores(few, weights))
    return [
        [score_probe(scores[i], truth[:, i], fit) for scores in by_k] for i in range(truth.shape[1])
    ]


def _parts(label: LabelProbing) -> tuple[list[ProbeScore], list[ProbeScore], list[ProbeScore]]:
    return label.by_latents, label.by_channels, [label.dense]


def _means(found: list[list[list[float]]]) -> dict[str, list[float]]:
    """Over labels, for each kind of probe and each k."""
    kinds = zip(("latents", "channels", "dense"), zip(*found, strict=True), strict=True)
    return {name: np.mean(values, axis=0).tolist() for name, values in kinds}


def _lines(probing: SparseProbing) -> Iterator[tuple[str, ...]]:
    f1, auroc = probing.mean_f1, probing.mean_auroc
    for i, k in enumerate(probing.ks):
        kinds = ("latents", "channels")
        means = (f"{means[kind][i]:.3f}" for kind in kinds for means in (f1, auroc))
        yield (f"the best {k}" if k > 1 else "the best one", *means)
    yield "all", "", "", f"{f1['dense'][0]:.3f}", f"{auroc['dense'][0]:.3f}"


PROBING = Measurement(
    "probing",
    "How much do a few latents tell?",
    _lines,
    measure=lambda inputs: sparse_probing(inputs.rows),
    result=SparseProbing,
    needs=(labels,),
    columns=(
        Column("mean over\nknown features", number=False, shared=True),
        Column("latents\nF1", style="bold"),
        Column("AUROC"),
        Column("channels\nF1", style="bold"),
        Column("AUROC"),
    ),
)

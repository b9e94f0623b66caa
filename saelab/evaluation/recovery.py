"""Ground-truth recovery: for each known feature of the text, the latent that finds it best.

The latent and its threshold are chosen on one half of the contexts and scored on the other, so
that picking the best of thousands does not flatter it. Beside it stands a linear probe fitted and
scored on the same halves: what is linearly there, and so what a latent could have reached.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from saelab.evaluation.detectors import DetectorFirings, Scores, score_label, sort_events
from saelab.evaluation.inputs import Inputs, labels
from saelab.evaluation.measurement import Column, Measurement, Streamed
from saelab.evaluation.probe import fit_probes, score_probe
from saelab.evaluation.rows import Rows, RowSample, chosen_rows

MIN_POSITIVES = 20
"""Labels with fewer positive rows in either half are reported as too rare to score."""


EXPLANATION = """\
The text's labels tell what is true of every token. A latent has found a feature
if it fires where the feature holds and nowhere else: F1 1.00. Of each SAE the best single latent is
shown, chosen on other text than it is scored on. AUROC: 0.50 is chance. The probe is a linear
classifier on the activations themselves: what was there to be found. The gap between the two is
what better SAEs have to win."""


@dataclass(frozen=True)
class Recovery:
    """One label: how often it holds, what a probe finds, and what the best latent finds.

    Attributes:
        latent, sign: the latent of the best F1, and which sign of its firings was meant.
        threshold: the detector says yes when its magnitude is at least this.
        f1, precision, recall, auroc: that latent, on the half it was not chosen on.
        best_auroc: the same for the latent of the best AUROC.
        probe_auroc: a linear probe of the activations, fitted on the other half.
        probe_f1: the probe's F1 at the threshold that was best on the half it was fitted on.
        description: of the label, where the text has one.
    """

    label: str
    frequency: float
    latent: int
    sign: int
    threshold: float
    f1: float
    precision: float
    recall: float
    auroc: float
    best_auroc: float
    probe_auroc: float
    probe_f1: float
    description: str = ""


@dataclass(frozen=True)
class LatentMatches:
    """For each latent, the label it finds best: chosen on one half, scored on the other.

    Attributes:
        label: the label's name, None for latents that never fired on the first half.
        f1, auroc: that label's scores on the second half.
    """

    label: list[str | None]
    f1: list[float]
    auroc: list[float]


@dataclass(frozen=True)
class RecoveryResult:
    """The comparison of all labels with all latents."""

    features: list[Recovery]
    too_rare: list[str]
    latents: LatentMatches


def recover(rows: Rows) -> RecoveryResult:
    """Score every label of the rows that is frequent enough, and match every latent with one."""
    assert rows.labels is not None
    names, labels, fit = rows.label_names, rows.labels.numpy(), rows.fit.numpy()
    common = common_labels(labels, fit)
    rare = [name for i, name in enumerate(names) if i not in set(common.tolist())]
    probes = _probe_scores(rows.x, labels[:, common], fit)
    halves = _halves(rows)
    features, matcher = [], _Matcher(halves[1])
    for label, probe in zip(common, probes, strict=True):
        truth = labels[fit, label], labels[~fit, label]
        fitted, tested = (score_label(e, t) for e, t in zip(halves, truth, strict=True))
        features.append(_recover_one(names[label], halves, (fitted, tested), truth, probe))
        matcher.offer(names[label], halves[0], fitted, truth[1], tested)
    return RecoveryResult(features, rare, matcher.result())


def common_labels(
    labels: Bool[ndarray, "row label"], fit: Bool[ndarray, " row"]
) -> Int[ndarray, " common"]:
    """The labels with enough positive and enough negative rows in either half."""
    halves = (labels[fit], labels[~fit])
    fewest = [np.minimum(half.sum(0), (~half).sum(0)) for half in halves]
    return np.flatnonzero(np.minimum(*fewest) >= MIN_POSITIVES)


class _Matcher:
    """Keeps, for each latent, the label of the best F1 so far."""

    def __init__(self, test_events: DetectorFirings) -> None:
        self.events = test_events
        d_sae = test_events.d_sae
        self.best = np.full(d_sae, -1.0)
        self.label: list[str | None] = [None] * d_sae
        self.f1, self.auroc = np.zeros(d_sae), np.full(d_sae, 0.5)

    def offer(
        self,
        name: str,
        fit_events: DetectorFirings,
        fitted: Scores,
        truth: Bool[ndarray, " test"],
        tested: Scores,
    ) -> None:
        latents = fit_events.detectors % self.events.d_sae
        for position in np.flatnonzero(fitted.f1 > self.best[latents]):
            latent, detector = int(latents[position]), int(fit_events.detectors[position])
            if fitted.f1[position] <= self.best[latent]:
                continue  # its other sign has just done better
            answers = _answers(self.events, detector, fitted.threshold[position])
            self.best[latent] = fitted.f1[position]
            self.label[latent] = name
            self.f1[latent] = _f1(answers, truth)[0]
            self.auroc[latent] = _auroc_of(self.events, tested, detector)

    def result(self) -> LatentMatches:
        return LatentMatches(self.label, self.f1.tolist(), self.auroc.tolist())


def _halves(rows: Rows) -> tuple[DetectorFirings, DetectorFirings]:
    chosen, scored = (sort_events(chosen_rows(rows.codes, half)) for half in (rows.fit, ~rows.fit))
    return chosen, scored


def _probe_scores(
    x: Float[Tensor, "row d_in"], labels: Bool[ndarray, "row label"], fit: Bool[ndarray, " row"]
) -> list[tuple[float, float]]:
    """AUROC and F1 of each label's probe on the rows it was not fitted on."""
    half, truth = torch.from_numpy(fit), torch.from_numpy(labels)
    weights, bias = fit_probes(x[half], truth[half])
    scores = x @ weights + bias
    found = [score_probe(*column, half) for column in zip(scores.T, truth.T, strict=True)]
    return [(score.auroc, score.f1) for score in found]


def _recover_one(
    name: str,
    halves: tuple[DetectorFirings, DetectorFirings],
    scores: tuple[Scores, Scores],
    truth: tuple[Bool[ndarray, " fit"], Bool[ndarray, " test"]],
    probe: tuple[float, float],
) -> Recovery:
    (fit_events, test_events), (fitted, tested) = halves, scores
    by_f1, by_auroc = int(fitted.f1.argmax()), int(fitted.auroc.argmax())
    detector, threshold = int(fit_events.detectors[by_f1]), float(fitted.threshold[by_f1])
    f1, precision, recall = _f1(_answers(test_events, detector, threshold), truth[1])
    latent, sign = fit_events.latent(by_f1)
    return Recovery(
        label=name,
        frequency=float(np.concatenate(truth).mean()),
        latent=latent,
        sign=sign,
        threshold=threshold,
        f1=f1,
        precision=precision,
        recall=recall,
        auroc=_auroc_of(test_events, tested, detector),
        best_auroc=_auroc_of(test_events, tested, int(fit_events.detectors[by_auroc])),
        probe_auroc=probe[0],
        probe_f1=probe[1],
    )


def _answers(events: DetectorFirings, detector: int, threshold: float) -> Bool[ndarray, " row"]:
    answers = np.zeros(events.n_rows, dtype=bool)
    position = int(np.searchsorted(events.detectors, detector))
    if position < len(events.detectors) and events.detectors[position] == detector:
        bounds = np.append(events.starts, len(events.row))
        mine = slice(bounds[position], bounds[position + 1])
        answers[events.row[mine][events.magnitude[mine] >= threshold]] = True
    return answers


def _auroc_of(events: DetectorFirings, scores: Scores, detector: int) -> float:
    """One half for a detector that is silent on these rows: it ranks nothing."""
    found = np.flatnonzero(events.detectors == detector)
    return float(scores.auroc[found[0]]) if len(found) else 0.5


def _f1(answer: Bool[ndarray, " row"], truth: Bool[ndarray, " row"]) -> tuple[float, float, float]:
    caught = int((answer & truth).sum())
    precision = caught / max(1, int(answer.sum()))
    recall = caught / max(1, int(truth.sum()))
    return 2 * caught / max(1, int(answer.sum()) + int(truth.sum())), precision, recall


def _lines(found: RecoveryResult) -> Iterator[tuple[str, ...]]:
    """One row per known feature, best found first."""
    for f in sorted(found.features, key=lambda f: -f.f1):
        best = f"{f.f1:.2f} ({'-' if f.sign < 0 else ''}{f.latent})"
        scores = (f"{score:.2f}" for score in (f.auroc, f.probe_f1, f.probe_auroc))
        yield f.label, f"{f.frequency:.1%}", best, *scores


def _left_out(found: RecoveryResult) -> Iterator[tuple[str, str]]:
    if rare := found.too_rare:
        named = ", ".join(rare[:8]) + (f" and {len(rare) - 8} more" if len(rare) > 8 else "")
        few = f"A half of the text has fewer than {MIN_POSITIVES} tokens with them, or without"
        yield "recovery", f"{few}: {named}"


def _streamed(inputs: Inputs) -> Streamed:
    every = RowSample()

    def results() -> RecoveryResult:
        found = recover(every.rows())
        told = {} if inputs.corpus is None else inputs.corpus.label_descriptions
        features = [replace(f, description=told.get(f.label, "")) for f in found.features]
        return replace(found, features=features)

    return Streamed(lambda batch: every.add(replace(batch.rows, target=None)), results)


RECOVERY = Measurement(
    "recovery",
    "Known features",
    _lines,
    stream=_streamed,
    result=RecoveryResult,
    needs=(labels,),
    suite="core",
    columns=(
        Column("known feature", number=False, shared=True),
        Column("tokens", shared=True),
        Column("F1 (latent)", style="bold"),
        Column("AUROC"),
        Column("probe\nF1"),
        Column("AUROC"),
    ),
    about=EXPLANATION,
    left_out=_left_out,
)

"""A run trained on arrays: what can be measured of it without a language model."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from saelab.config import UsageError
from saelab.evaluation.absorption_tasks import feature_absorption
from saelab.evaluation.density import DensityCounts
from saelab.evaluation.dictionary import dictionary_figures
from saelab.evaluation.mdl import description_length
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.probing import sparse_probing
from saelab.evaluation.reconstruction import Reconstruction
from saelab.evaluation.recovery import RecoveryData, RecoveryResult, recover
from saelab.evaluation.results import Evaluation, save_evaluation
from saelab.evaluation.rows import NO_LABELS, Rows, Skipped, first, first_rows
from saelab.evaluation.suite import MEASUREMENTS
from saelab.lock import writing
from saelab.sae.base import AbstractSAE
from saelab.training.run import Run
from saelab.training.source import Source
from saelab.types import SparseCodes

ROWS_AT_ONCE = 4096
STRETCHES = 64
"""Rows are halved in so many alternating stretches: neighbours, which may be neighbours in a text,
fall into one half."""
NO_MODEL = "The run was trained on arrays, and this needs a language model."
SEEN = "The store is too small to hold rows back, so these figures are of rows it was trained on."


@torch.no_grad()
def evaluate_arrays(
    run: Run, options: EvaluateOptions | None = None, *, device: torch.device | str = "cpu"
) -> Evaluation:
    """Measure a run on the rows of its store that were held back from training, and save it.

    Reconstruction, density and dictionary; recovery where the arrays have labels; for the full
    suite description length, and with labels sparse probing and absorption. `skipped` names
    everything else. Variants with thresholds set them on these same rows.

    Raises:
        UsageError: the store is gone, or another process writes the run.
    """
    with writing(run.path):
        return _evaluate_arrays(run, options or EvaluateOptions(), device)


def _evaluate_arrays(run: Run, options: EvaluateOptions, device: torch.device | str) -> Evaluation:
    sae = run.load_sae(str(device))
    # What was left out stands in the run: the store may have grown, and its limit moved, since.
    source = Source([run.config.with_every_row()], torch.device("cpu"))
    x = source.calibration_rows()
    target = source.calibration_targets() if sae.is_transcoder else None
    covered = run.domain.within(x, target)
    reconstruction = Reconstruction(sae.d_out, sae.d_sae, sae.W_dec.device)
    x, target, chosen, reconstruction.left_out = _first(x, target, covered, options.n_tokens)
    density = DensityCounts(sae.d_sae, sae.W_dec.device)
    codes: list[SparseCodes] = []
    for part, wanted in zip(
        x.split(ROWS_AT_ONCE), (x if target is None else target).split(ROWS_AT_ONCE), strict=True
    ):
        here = part.to(sae.W_dec.device)
        found = sae.encode(here)
        reconstruction.update(wanted.to(here.device), sae.decode(found, here), found)
        density.update(found)
        codes.append(first_rows(found, len(part)))
    rows = _rows(source, chosen, x, target, SparseCodes.stack(codes))
    measured, skipped = _measured(rows, sae, options)
    if not source.held_back:
        skipped["held_out"] = SEEN
    result = Evaluation(
        reconstruction=reconstruction.results(),
        downstream={},
        density=density.results(),
        dictionary=dictionary_figures(sae, signed=density.signed),
        skipped=skipped,
        **measured,
    )
    save_evaluation(run, result, options, corpus=None, device=str(sae.W_dec.device))
    return result


def _first(
    x: Float[Tensor, "row d_in"],
    target: Float[Tensor, "row d_out"] | None,
    covered: Bool[Tensor, " row"],
    n: int,
) -> tuple[
    Float[Tensor, "kept d_in"], Float[Tensor, "kept d_out"] | None, Int[Tensor, " kept"], int
]:
    """The first `n` rows that are covered, which they are, and how many before are not."""
    chosen = covered.nonzero()[:n, 0]
    if not len(chosen):
        raise UsageError("The rows that were held back are all massive; there is none to measure.")
    seen = len(x) if len(chosen) < n else int(chosen[-1]) + 1
    left_out = seen - len(chosen)
    return x[chosen].float(), None if target is None else target[chosen].float(), chosen, left_out


def _rows(
    source: Source,
    chosen: Int[Tensor, " row"],
    x: Float[Tensor, "row d_in"],
    target: Float[Tensor, "row d_out"] | None,
    codes: SparseCodes,
) -> Rows:
    """The rows with the labels that the store has of them."""
    context, labels = source.store.row_labels(source.calibration_index()[chosen.numpy()])
    return Rows(
        x,
        codes,
        token=torch.zeros(len(x), dtype=torch.long),
        fit=torch.from_numpy(halves(context)),
        labels=None if labels is None else torch.from_numpy(labels),
        label_names=source.store.manifest.label_names,
        target=target,
    )


def halves(place: Int[ndarray, " row"]) -> Bool[ndarray, " row"]:
    """True in every other stretch of consecutive places."""
    rank = place.argsort(kind="stable").argsort(kind="stable")
    return rank * STRETCHES // len(place) % 2 == 0


def _measured(
    rows: Rows, sae: AbstractSAE, options: EvaluateOptions
) -> tuple[dict[str, Any], dict[str, str]]:
    """What needs no language model, and why the rest was not measured; by name."""
    names = ("recovery", *MEASUREMENTS) if options.suite == "full" else ("recovery",)
    skipped = dict.fromkeys(("downstream", *names), NO_MODEL)
    found: dict[str, Any] = {"recovery": _recovery(rows)}
    if options.suite == "full":
        sample = first(rows, options.n_sample)
        tolerance = options.fvu_tolerance
        found["description_length"] = description_length(sample, sae, tolerance=tolerance)
        found["probing"] = sparse_probing(sample)
        found["absorption"] = feature_absorption(sample, sae, None, seed=options.seed)
    for name, result in list(found.items()):
        skipped.pop(name)
        if isinstance(result, Skipped):
            skipped[name] = found.pop(name).reason
    return {"recovery": None, **found}, skipped


def _recovery(rows: Rows) -> RecoveryResult | Skipped:
    if rows.labels is None:
        return Skipped(NO_LABELS)
    data = RecoveryData()
    data.add(rows.x, rows.codes, rows.labels.numpy(), rows.fit.numpy())
    return recover(data, rows.label_names)

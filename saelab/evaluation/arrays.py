"""Evaluating a run trained on arrays, without a language model."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Int
from numpy import ndarray
from torch import Tensor

from saelab.config import UsageError
from saelab.evaluation.inputs import Batch, Inputs
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.results import Evaluation, save_evaluation
from saelab.evaluation.rows import Rows
from saelab.evaluation.suite import measure_all
from saelab.lock import writing
from saelab.training.run import Run
from saelab.training.source import Source

ROWS_AT_ONCE = 4096
STRETCHES = 64
"""Rows are halved in this many alternating stretches, so that neighbours, which may come from one
text, are in the same half."""
SEEN = "The store is too small to hold rows back, so these figures are of rows it was trained on."


@torch.no_grad()
def evaluate_arrays(
    run: Run, options: EvaluateOptions | None = None, *, device: torch.device | str = "cpu"
) -> Evaluation:
    """Measure a run on the rows of its store that were held back from training, and save it.

    `skipped` names every measurement that needs something arrays do not have. Variants with
    thresholds calibrate them on the same rows.

    Raises:
        UsageError: the store is missing, or another process writes the run.
    """
    with writing(run.path):
        return _evaluate_arrays(run, options or EvaluateOptions(), device)


def _evaluate_arrays(run: Run, options: EvaluateOptions, device: torch.device | str) -> Evaluation:
    sae = run.load_sae(str(device))
    # The run records what was left out: the store may have grown since, and its limit changed.
    source = Source([run.config.with_every_row()], torch.device("cpu"))
    x = source.calibration_rows()
    target = source.calibration_targets() if sae.is_transcoder else None
    covered = run.domain.within(x, target)
    chosen, n_left_out = _first(covered, options.n_tokens)
    context, labels = source.store.row_labels(source.calibration_index()[chosen.numpy()])
    names = () if labels is None else source.store.manifest.label_names
    inputs = Inputs(run, sae, options, label_names=names, n_left_out=n_left_out)
    fit = torch.from_numpy(halves(context))

    def batches() -> Iterator[Batch]:
        for part in torch.arange(len(chosen)).split(ROWS_AT_ONCE):
            here = x[chosen[part]].float().to(inputs.device)
            rows = Rows(
                here,
                sae.encode(here),
                token=torch.zeros(len(here), dtype=torch.long),
                fit=fit[part],
                labels=None if labels is None else torch.from_numpy(labels)[part],
                label_names=names,
                target=None if target is None else target[chosen[part]].float().to(inputs.device),
            )
            yield Batch.of(sae, rows)

    result = measure_all(inputs, batches())
    if not source.held_back:
        result.skipped["held_out"] = SEEN
    save_evaluation(run, result, options, corpus=None, device=str(inputs.device))
    return result


def _first(covered: Bool[Tensor, " row"], n: int) -> tuple[Int[Tensor, " kept"], int]:
    """Indices of the first `n` rows in the domain, and the number of other rows before them."""
    chosen = covered.nonzero()[:n, 0]
    if not len(chosen):
        raise UsageError("The rows that were held back are all massive; there is none to measure.")
    seen = len(covered) if len(chosen) < n else int(chosen[-1]) + 1
    return chosen, seen - len(chosen)


def halves(place: Int[ndarray, " row"]) -> Bool[ndarray, " row"]:
    """True in every second stretch of consecutive indices."""
    rank = place.argsort(kind="stable").argsort(kind="stable")
    return rank * STRETCHES // len(place) % 2 == 0

"""Evaluating a run trained on arrays, without a language model."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from saelab.activations.joint import JointSite
from saelab.config import UsageError
from saelab.evaluation.another import with_another
from saelab.evaluation.inputs import Batch, Inputs
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.results import Evaluation, save_evaluation
from saelab.evaluation.rows import Rows
from saelab.evaluation.suite import measure_all
from saelab.lock import writing
from saelab.sae.with_encoder import CALIBRATION_ROWS
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
    kept = held_back(run, options.n_tokens)
    source, chosen = kept.source, kept.chosen
    context, labels = source.store.row_labels(source.calibration_index()[chosen.numpy()])
    names = () if labels is None else source.store.manifest.label_names
    if options.encoder is not None:
        some = chosen[:: max(1, len(chosen) // CALIBRATION_ROWS)]
        sae = with_another(sae, options, *kept.at(some, sae.W_dec.device))
    inputs = Inputs(run, sae, options, label_names=names, n_left_out=kept.n_left_out)
    fit = torch.from_numpy(halves(context))

    def batches() -> Iterator[Batch]:
        for part in torch.arange(len(chosen)).split(ROWS_AT_ONCE):
            here, wanted = kept.at(chosen[part], inputs.device)
            rows = Rows(
                here,
                sae.encode_for(here, wanted),
                token=torch.zeros(len(here), dtype=torch.long),
                fit=fit[part],
                labels=None if labels is None else torch.from_numpy(labels)[part],
                label_names=names,
                target=wanted,
            )
            yield Batch.of(sae, rows)

    result = measure_all(inputs, batches())
    if not source.held_back:
        result.skipped["held_out"] = SEEN
    save_evaluation(run, result, options, corpus=None, device=str(inputs.device))
    return result


class HeldBack(NamedTuple):
    """The rows of a store that were held back from training, and those in the SAE's domain.

    Attributes:
        x, target: all rows; a transcoder's target.
        chosen: indices of the first rows in the domain.
        n_left_out: other rows before the last of these.
    """

    source: Source
    x: Float[Tensor, "row d_in"]
    target: Float[Tensor, "row d_out"] | None
    chosen: Int[Tensor, " kept"]
    n_left_out: int

    def at(
        self, rows: Int[Tensor, " n"], device: torch.device
    ) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"] | None]:
        """Some rows, and what a transcoder should make of them, in float32."""
        target = None if self.target is None else self.target[rows].float().to(device)
        return self.x[rows].float().to(device), target


def held_back(run: Run, n_tokens: int) -> HeldBack:
    """The first `n_tokens` rows that were held back from training.

    Raises:
        UsageError: the store is missing, or all these rows are massive.
    """
    # The run records what was left out: the store may have grown since, and its limit changed.
    source = Source([run.config_now().with_every_row()], torch.device("cpu"))
    x = _as_trained(source, run, source.calibration_rows())
    target = None if run.config.target_site is None else source.calibration_targets()
    chosen, n_left_out = _first(run.domain.within(x, target), n_tokens)
    return HeldBack(source, x, target, chosen, n_left_out)


def _as_trained(
    source: Source, run: Run, x: Float[Tensor, "row d_in"]
) -> Float[Tensor, "row d_in"]:
    """Rows of a joint site at the scales of the run's training; a store that grew has others."""
    if not isinstance(source.site, JointSite):
        return x
    now = zip(run.domain.parts, source.site.factors, strict=True)
    ratio = [torch.full((part.width,), part.factor / factor) for part, factor in now]
    return x * torch.cat(ratio)


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

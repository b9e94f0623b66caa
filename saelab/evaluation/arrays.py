"""A run trained on arrays: what can be measured of it without a language model."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.config import UsageError
from saelab.evaluation.density import DensityCounts
from saelab.evaluation.dictionary import dictionary_figures
from saelab.evaluation.mdl import DescriptionLength, description_length
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.reconstruction import Reconstruction
from saelab.evaluation.results import Evaluation, save_evaluation
from saelab.evaluation.rows import Rows, Skipped, first_rows
from saelab.sae.base import AbstractSAE
from saelab.training.run import Run
from saelab.training.source import Source
from saelab.types import SparseCodes

ROWS_AT_ONCE = 4096
NO_MODEL = "The run was trained on arrays, and this needs a language model."
NO_LABELS = "The run was trained on arrays, whose labels are not read."
SEEN = "The store is too small to hold rows back, so these figures are of rows it was trained on."


@torch.no_grad()
def evaluate_arrays(
    run: Run, options: EvaluateOptions | None = None, *, device: torch.device | str = "cpu"
) -> Evaluation:
    """Measure a run on the rows of its store that were held back from training, and save it.

    Reconstruction, density and dictionary, and for the full suite description length; `skipped`
    names everything else. Variants with thresholds set them on these same rows.

    Raises:
        UsageError: the store is gone.
    """
    options = options or EvaluateOptions()
    sae = run.load_sae(str(device))
    # What was left out stands in the run: the store may have grown, and its limit moved, since.
    source = Source([run.config.with_every_row()], torch.device("cpu"))
    x = source.calibration_rows()
    target = source.calibration_targets() if sae.is_transcoder else None
    covered = run.domain.within(x, target)
    reconstruction = Reconstruction(sae.d_out, sae.d_sae, sae.W_dec.device)
    x, target, reconstruction.left_out = _first(x, target, covered, options.n_tokens)
    density = DensityCounts(sae.d_sae, sae.W_dec.device)
    for start in range(0, len(x), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        rows = x[part].to(sae.W_dec.device)
        wanted = rows if target is None else target[part].to(sae.W_dec.device)
        codes = sae.encode(rows)
        reconstruction.update(wanted, sae.decode(codes, rows), codes)
        density.update(codes)
    skipped = _skipped(options, held_back=source.held_back)
    length = _length(sae, x, target, options)
    if isinstance(length, Skipped):
        skipped["description_length"] = length.reason
    result = Evaluation(
        reconstruction=reconstruction.results(),
        downstream={},
        recovery=None,
        density=density.results(),
        dictionary=dictionary_figures(sae, signed=density.signed),
        description_length=None if isinstance(length, Skipped) else length,
        skipped=skipped,
    )
    save_evaluation(run, result, options, corpus=None, device=str(sae.W_dec.device))
    return result


def _first(
    x: Float[Tensor, "row d_in"],
    target: Float[Tensor, "row d_out"] | None,
    covered: Bool[Tensor, " row"],
    n: int,
) -> tuple[Float[Tensor, "kept d_in"], Float[Tensor, "kept d_out"] | None, int]:
    """The first `n` rows that are covered, and how many before the last of them are not."""
    chosen = covered.nonzero()[:n, 0]
    if not len(chosen):
        raise UsageError("The rows that were held back are all massive; there is none to measure.")
    seen = len(x) if len(chosen) < n else int(chosen[-1]) + 1
    left_out = seen - len(chosen)
    return x[chosen].float(), None if target is None else target[chosen].float(), left_out


def _length(
    sae: AbstractSAE,
    x: Float[Tensor, "row d_in"],
    target: Float[Tensor, "row d_out"] | None,
    options: EvaluateOptions,
) -> DescriptionLength | Skipped | None:
    if options.suite == "core":
        return None
    x = x[: options.n_sample]
    parts = [sae.encode(part.to(sae.W_dec.device)) for part in x.split(ROWS_AT_ONCE)]
    codes = SparseCodes.stack([first_rows(part, len(part)) for part in parts])
    nothing = torch.zeros(len(x), dtype=torch.long)
    target = None if target is None else target[: options.n_sample]
    rows = Rows(x, codes, token=nothing, fit=nothing == 0, target=target)
    return description_length(rows, sae, tolerance=options.fvu_tolerance)


def _skipped(options: EvaluateOptions, *, held_back: bool) -> dict[str, str]:
    skipped = {"downstream": NO_MODEL, "recovery": NO_LABELS}
    if not held_back:
        skipped["held_out"] = SEEN
    if options.suite == "full":
        labelled = dict.fromkeys(("probing", "absorption"), NO_LABELS)
        skipped |= dict.fromkeys(("uniformity", "ablation"), NO_MODEL) | labelled
    return skipped

"""Some rows that no training saw, of runs on text and on arrays, to try an SAE on."""

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.evaluation.another import sample_rows
from saelab.evaluation.arrays import held_back
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.plan import sized
from saelab.host.host import Host, load_model_of
from saelab.host.text import corpus_of
from saelab.lm.protocol import LanguageModel
from saelab.sae.with_encoder import CALIBRATION_ROWS
from saelab.training.run import Run

Rows = Float[Tensor, "row _"]


@torch.no_grad()
def held_out_rows(
    run: Run, lm: LanguageModel | None = None, *, n_tokens: int = 20_000
) -> tuple[Rows, Rows | None]:
    """About 512 random rows of a run's held-out text, and what a transcoder should make of them.

    They are among the first `n_tokens` that training saw none of. Of a run trained on arrays they
    are rows held back from training. Both are on the model's device, or on the CPU.

    Raises:
        UsageError: `lm` is not the run's model, or the text or the store is missing.
    """
    options = EvaluateOptions(n_tokens=n_tokens)
    if run.on_arrays:
        kept = held_back(run, n_tokens)
        some = kept.chosen[:: max(1, len(kept.chosen) // CALIBRATION_ROWS)]
        return kept.at(some, torch.device("cpu"))
    lm = load_model_of([run]) if lm is None else lm
    host, corpus = Host.of_run(run, lm), corpus_of(run, lm, "held-out")
    return sample_rows(host, corpus, sized(options, lm, corpus, host.sae.d_sae))

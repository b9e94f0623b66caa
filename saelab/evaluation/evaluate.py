"""A run's evaluation on held-out text, in one pass."""

from dataclasses import asdict, dataclass

import torch

from saelab.config import UsageError
from saelab.console import progress
from saelab.evaluation.downstream import Downstream
from saelab.evaluation.reconstruction import Reconstruction
from saelab.evaluation.recovery import RecoveryData, RecoveryResult, recover
from saelab.evaluation.stream import corpus_of, half_by_context, stream
from saelab.lm.protocol import LanguageModel
from saelab.training.run import Run
from saelab.types import Figures


@dataclass(frozen=True)
class Evaluation:
    """What was measured, all of it on text that no training saw.

    Attributes:
        reconstruction: see `Reconstruction.results`.
        downstream: see `Downstream.results`.
        recovery: known features against latents; None where the text has no labels.
    """

    reconstruction: Figures
    downstream: Figures
    recovery: RecoveryResult | None


@torch.no_grad()
def evaluate(
    run: Run, lm: LanguageModel, *, n_tokens: int = 50_000, batch_size: int = 32
) -> Evaluation:
    """Measure a run on `n_tokens` held-out tokens and save `evaluation/*.json` in it.

    Raises:
        UsageError: `lm` is not the model the run was trained on, or the text is gone.
    """
    sae = run.load_sae(str(lm.device))
    corpus = corpus_of(run, lm, "held-out")
    reconstruction = Reconstruction(sae.d_in, sae.d_sae, lm.device)
    downstream = Downstream(lm.device)
    data = RecoveryData()
    with progress("Evaluate", n_tokens, "tokens") as bar:
        for batch in stream(
            run, lm, corpus, n_tokens=n_tokens, batch_size=batch_size, with_logits=True
        ):
            codes = sae.encode(batch.x)
            x_hat = sae.decode(codes)
            reconstruction.update(batch.x, x_hat, codes)
            downstream.update(
                lm, run.config.site, batch.tokens, batch.mask, x_hat, logits=batch.logits
            )
            if (labels := batch.labels()) is not None:
                data.add(batch.x, codes, labels, half_by_context(batch))
            bar.advance(len(batch.x))
    if not reconstruction.n or not downstream.n:
        raise UsageError("The held-out text has no tokens to evaluate on; give more text.")
    recovery = recover(data, corpus.label_names) if data.labels else None
    result = Evaluation(reconstruction.results(), downstream.results(), recovery)
    _save(run, result, dict(corpus.label_descriptions))
    return result


def _save(run: Run, result: Evaluation, descriptions: dict[str, str]) -> None:
    run.save_evaluation("reconstruction", result.reconstruction)
    run.save_evaluation("downstream", result.downstream)
    if result.recovery is not None:
        values = asdict(result.recovery)
        for feature in values["features"]:
            feature["description"] = descriptions[feature["label"]]
        run.save_evaluation("recovery", values)

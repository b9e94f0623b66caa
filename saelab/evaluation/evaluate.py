"""A run's evaluation on held-out text."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from saelab.activations.corpus import Corpus
from saelab.config import UsageError
from saelab.evaluation.another import sample_rows, with_another
from saelab.evaluation.arrays import evaluate_arrays
from saelab.evaluation.inputs import Batch, Inputs
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.plan import Evaluated, sized
from saelab.evaluation.results import Evaluation, save_evaluation
from saelab.evaluation.rows import rows_of_text
from saelab.evaluation.suite import asked_for, measure_all
from saelab.host.host import Host, load_model_of
from saelab.host.text import corpus_of
from saelab.lm.load import resolve_device
from saelab.lm.protocol import LanguageModel
from saelab.lock import writing
from saelab.training.run import Run

__all__ = ["Evaluation", "evaluate"]


@torch.no_grad()
def evaluate(  # noqa: PLR0913 - the options that are replaced most often stand by themselves
    run: Run,
    lm: LanguageModel | None = None,
    options: EvaluateOptions | None = None,
    *,
    corpus: Corpus | None = None,
    n_tokens: int | None = None,
    batch_size: int | None = None,
    device: str | torch.device = "auto",
    save: bool = True,
) -> Evaluation:
    """Measure a run on held-out tokens and save `evaluation/*.json` in it.

    `lm` is the run's language model; if not given, it is loaded on `device`. A run trained on
    arrays needs no model: it is measured on held-back rows of its store, and `skipped` names what
    needs a model (see `evaluate_arrays`).

    `options` default to the core suite; `n_tokens` and `batch_size` override theirs. Results on
    another `corpus` than the run's held-out text (see `other_text`) are saved in
    `evaluation/NAME/*.json`; NAME comes from the text's name and digest. So are those with another
    encoder (`options.encoder`), with NAME `encoder-omp`, ... Without `save` nothing is written (of
    a run of text).

    Raises:
        UsageError: `lm` is not the run's model, the text is missing, a model or text was given for
            arrays, or another process writes the run.
    """
    changes = {"n_tokens": n_tokens, "batch_size": batch_size}
    options = _replaced(options or EvaluateOptions(), changes)
    options.check()
    asked_for(options)
    if run.on_arrays:
        if lm is not None or corpus is not None:
            raise UsageError(f"{run.path} was trained on arrays, which no model reads; give none.")
        return evaluate_arrays(run, options, device=resolve_device(device))
    with writing(run.path):
        if lm is None:
            lm = load_model_of([run], device=device)
        host = Host.of_run(run, lm)
        lm = host.lm
        corpus = corpus_of(run, lm, "held-out") if corpus is None else corpus
        options = sized(options, lm, corpus, host.sae.d_sae)
        sample = None
        if options.encoder is not None:
            sample = sample_rows(host, corpus, options)
            host = replace(host, sae=with_another(host.sae, options, *sample))
        Evaluated(lm, host.sae, corpus, options, sample).plan().announce()
        inputs = Inputs(run, host.sae, options, host, corpus, corpus.label_names)
        result = measure_all(inputs, _batches(inputs, corpus))
        if save:
            save_evaluation(run, result, options, corpus=corpus, device=str(lm.device))
    return result


def _replaced(options: EvaluateOptions, changes: dict[str, int | None]) -> EvaluateOptions:
    given = {name: value for name, value in changes.items() if value is not None}
    return EvaluateOptions.model_validate(options.model_dump() | given)


def _batches(inputs: Inputs, corpus: Corpus) -> Iterator[Batch]:
    """The batches of text, through the model and the SAE."""
    for text in inputs.batches(with_predictions=inputs.with_predictions):
        inputs.n_left_out += text.left_out
        if len(text.x):
            codes = inputs.sae.encode_for(text.x, text.target)
            yield Batch.of(inputs.sae, rows_of_text(text, codes, corpus), text)

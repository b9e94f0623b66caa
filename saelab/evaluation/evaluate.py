"""A run's evaluation on held-out text: one pass, then whatever else was asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter

import torch

from saelab.activations.corpus import Corpus
from saelab.config import UsageError
from saelab.console import progress
from saelab.evaluation.arrays import evaluate_arrays
from saelab.evaluation.density import DensityCounts
from saelab.evaluation.dictionary import dictionary_figures
from saelab.evaluation.downstream import Downstream, against_mean, downstream_problem
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.plan import Evaluated, sized
from saelab.evaluation.reconstruction import Reconstruction
from saelab.evaluation.recovery import RecoveryData, recover
from saelab.evaluation.results import Evaluation, save_evaluation
from saelab.evaluation.rows import NO_LABELS, RowSample
from saelab.evaluation.suite import Inputs, measure_suite
from saelab.host.host import Host
from saelab.host.text import TextBatch, corpus_of, half_by_context, read_text, stream
from saelab.lm.load import load_recorded_model, resolve_device
from saelab.lm.protocol import LanguageModel
from saelab.lock import writing
from saelab.training.run import Run
from saelab.types import Figures

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
) -> Evaluation:
    """Measure a run on held-out tokens and save `evaluation/*.json` in it.

    `lm` is the model it was trained on; unless it is given, it is loaded on `device`. A run
    trained on arrays needs none: it is measured on rows of its store that were held back from
    training, and `skipped` says what needs a model (see `evaluate_arrays`).

    `options` are the core suite unless given; `n_tokens` and `batch_size` replace theirs. What is
    measured on another `corpus` than the text that was held out from training (see `other_text`)
    is saved in `evaluation/NAME/*.json`, NAME made of the text's name and digest.

    Raises:
        UsageError: `lm` is not the model the run was trained on, the text is gone, a model or text
            was given for arrays, or another process writes the run.
    """
    changes = {"n_tokens": n_tokens, "batch_size": batch_size}
    options = _replaced(options or EvaluateOptions(), changes)
    if run.on_arrays:
        if lm is not None or corpus is not None:
            raise UsageError(f"{run.path} was trained on arrays, which no model reads; give none.")
        return evaluate_arrays(run, options, device=resolve_device(device))
    with writing(run.path):
        if lm is None:
            lm = load_recorded_model(run.model(), device=device)
        host = Host.of_run(run, lm)
        corpus = corpus_of(run, lm, "held-out") if corpus is None else corpus
        options = sized(options, lm, corpus)
        Evaluated(lm, host.sae, corpus, options).plan().announce()
        found = _Pass(host, corpus, options)
        with found.clock("held_out_text"):
            found.read()
        result = found.core()
        if options.suite == "full":
            result = found.full(result)
        save_evaluation(run, result, options, corpus=corpus, device=str(lm.device))
    return result


def _replaced(options: EvaluateOptions, changes: dict[str, int | None]) -> EvaluateOptions:
    given = {name: value for name, value in changes.items() if value is not None}
    return EvaluateOptions.model_validate(options.model_dump() | given)


class _Pass:
    """The one pass over the text that everything starts from."""

    def __init__(self, host: Host, corpus: Corpus, options: EvaluateOptions) -> None:
        self.host, self.corpus, self.options = host, corpus, options
        sae, lm = host.sae, host.lm
        self.reconstruction = Reconstruction(sae.d_out, sae.d_sae, lm.device)
        self.downstream = Downstream(lm.device)
        self.density = DensityCounts(sae.d_sae, lm.device)
        self.data = RecoveryData()
        n_sample = options.n_sample if options.suite == "full" else 0
        self.sample = RowSample(n_sample, corpus.label_names, corpus.label_hierarchies)
        self.problem = downstream_problem(host.writes)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        started = perf_counter()
        yield
        self.seconds[name] = perf_counter() - started

    def read(self) -> None:
        """Stream the text through the model and the SAE."""
        options = self.options
        with progress("Evaluate", options.n_tokens, "tokens") as bar:
            for batch in stream(
                self.host,
                self.corpus,
                n_tokens=options.n_tokens,
                batch_size=options.contexts,
                with_predictions=self.problem is None,
            ):
                self.reconstruction.left_out += batch.left_out
                if len(batch.x):
                    self._add(batch)
                bar.advance(len(batch.x))
        if not self.reconstruction.n or not (self.downstream.n or self.problem):
            raise UsageError("The held-out text has no tokens to evaluate on; give more text.")

    def _add(self, batch: TextBatch) -> None:
        codes = self.host.sae.encode(batch.x)
        x_hat = self.host.sae.decode(codes, batch.x)
        self.reconstruction.update(batch.wanted, x_hat, codes)
        self.density.update(codes)
        self.sample.add(batch, codes)
        if self.problem is None:
            self.downstream.update(
                self.host.lm,
                self.host.writes,
                batch.tokens,
                batch.mask,
                x_hat,
                plain=batch.out,
            )
        if (labels := batch.labels()) is not None:
            self.data.add(batch.x, codes, labels, half_by_context(batch))

    def core(self) -> Evaluation:
        """What the pass and the weights give."""
        skipped = {} if self.problem is None else {"downstream": self.problem}
        recovery = None
        if self.data.labels:
            with self.clock("recovery"):
                recovery = recover(self.data, self.corpus.label_names)
        else:
            skipped["recovery"] = NO_LABELS
        with self.clock("dictionary"):
            dictionary = dictionary_figures(self.host.sae, signed=self.density.signed)
        return Evaluation(
            reconstruction=self.reconstruction.results(),
            downstream={} if self.problem else self.downstream.results(),
            recovery=recovery,
            density=self.density.results(),
            dictionary=dictionary,
            skipped=skipped,
            seconds=self.seconds,
        )

    def full(self, core: Evaluation) -> Evaluation:
        """What the core gave, and the rest of the full suite."""
        downstream = core.downstream
        if self.problem is None:
            with self.clock("mean_ablation"):
                downstream = self._against_mean(core.downstream)
        inputs = Inputs(self.host, self.corpus, self.sample.rows(), self.options)
        found, skipped, seconds = measure_suite(inputs)
        return replace(
            core,
            downstream=downstream,
            skipped=core.skipped | skipped,
            seconds=self.seconds | seconds,
            **found,
        )

    def _against_mean(self, figures: Figures) -> Figures:
        options = self.options
        texts = read_text(
            self.host, self.corpus, n_tokens=options.n_tokens, batch_size=options.contexts
        )
        mean = self.reconstruction.sum / self.reconstruction.n
        return against_mean(figures, self.host.lm, self.host.writes, texts, mean)

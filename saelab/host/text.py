"""The text of a run, and its activations, batch by batch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from saelab.activations.corpus import Contexts, Corpus, Split, recorded_corpus
from saelab.activations.harvest import model_input, row_mask
from saelab.config import UsageError
from saelab.host.host import Host, check_model
from saelab.lm.protocol import LanguageModel, ModelOutput
from saelab.moved import beside, now_at
from saelab.training.run import Run


@dataclass(frozen=True)
class TextBatch:
    """A few contexts and their activations at the sites that the SAE reads and writes.

    Attributes:
        first: index of the first context in the corpus.
        tokens: token ids as the model reads them (padding replaced).
        mask: positions of real tokens that the SAE's domain covers (see `Domain`); only these
            count and are edited.
        x: the rows of those positions, in reading order.
        out: the plain model's output, if predictions were asked for.
        target: the activations to reconstruct at those positions, if not `x` (transcoders).
        left_out: number of positions that are neither padding nor special tokens but not covered:
            massive activations, and first positions that training left out.
    """

    first: int
    contexts: Contexts
    tokens: Int[Tensor, "context pos"]
    mask: Bool[Tensor, "context pos"]
    x: Float[Tensor, "row d_in"]
    out: ModelOutput | None = None
    target: Float[Tensor, "row d_out"] | None = None
    left_out: int = 0

    @property
    def wanted(self) -> Float[Tensor, "row d_out"]:
        """The activations to reconstruct: the target, or `x` if there is none."""
        return self.x if self.target is None else self.target

    def labels(self) -> Bool[ndarray, "row label"] | None:
        """Ground-truth labels of the rows; None if the corpus has none."""
        labels = self.contexts.labels
        return None if labels is None else labels[self.mask.cpu().numpy()]


def corpus_of(run: Run, lm: LanguageModel, split: Split) -> Corpus:
    """The text that the run was trained on, or its held-out part.

    Raises:
        UsageError: the run was trained on arrays without text, or on another model than `lm`, or
            the text has changed.
    """
    record = run.provenance()
    check_model(lm, run)
    facts = record["corpus"]
    if facts is None:
        raise UsageError(f"{run.path} was trained on arrays without text, so it has no corpus.")
    kept = now_at(Path(run.config.activations), beside(run.path))
    if not isinstance(facts.get("source"), str):
        raise UsageError(f"{run.path / 'provenance.json'} does not say which text it was.")
    return recorded_corpus(facts, lm, split, run.context_length, kept=kept, near=beside(run.path))


@dataclass(frozen=True)
class Text:
    """A few contexts as the model reads them; the fields are those of `TextBatch`."""

    first: int
    contexts: Contexts
    tokens: Int[Tensor, "context pos"]
    mask: Bool[Tensor, "context pos"]


def read_text(host: Host, corpus: Corpus, *, n_tokens: int, batch_size: int) -> Iterator[Text]:
    """Batches of `batch_size` contexts until at least `n_tokens` rows, or the corpus, are read.

    If the SAE's domain depends on activations, each batch costs a forward pass up to the sites.
    """
    if not host.domain.limited:
        yield from _texts(host, corpus, batch_size=batch_size, n_tokens=n_tokens)
        return
    for batch in stream(host, corpus, n_tokens=n_tokens, batch_size=batch_size):
        yield Text(batch.first, batch.contexts, batch.tokens, batch.mask)


def stream(
    host: Host,
    corpus: Corpus,
    *,
    n_tokens: int,
    batch_size: int,
    with_predictions: bool = False,
) -> Iterator[TextBatch]:
    """The batches of `read_text` with the rows that the SAE reads and reconstructs.

    One forward pass per batch; it stops at the sites unless predictions are asked for.
    """
    lm, rows = host.lm, 0
    for text in _texts(host, corpus, batch_size=batch_size):
        out = lm.run(text.tokens, hooks=host.sites) if with_predictions else None
        found = lm.capture(text.tokens, host.sites) if out is None else out.activations
        x, *targets = (found[name] for name in host.sites)
        mask = text.mask & host.domain.within(x, *targets)
        yield TextBatch(
            text.first,
            text.contexts,
            text.tokens,
            mask,
            x[mask].float(),
            out,
            target=targets[0][mask].float() if targets else None,
            left_out=int((text.mask & ~mask).sum()),
        )
        rows += int(mask.sum())
        if rows >= n_tokens:
            return


def _texts(
    host: Host, corpus: Corpus, *, batch_size: int, n_tokens: float | int = math.inf
) -> Iterator[Text]:
    """Batches with the positions that the domain covers, regardless of the activations there."""
    lm, rows, first, start = host.lm, 0, 0, host.domain.first_position
    while rows < n_tokens and (last := corpus.available(first + batch_size)) > first:
        contexts = corpus.read(first, last)
        mask = torch.from_numpy(row_mask(lm, contexts.tokens, contexts.columns)).to(lm.device)
        mask[:, :start] = False
        yield Text(first, contexts, model_input(contexts.tokens).to(lm.device), mask)
        rows, first = rows + int(mask.sum()), last


def half_by_context(batch: TextBatch) -> Bool[ndarray, " row"]:
    """True for about half of the rows; the two halves share no context, so neither leaks.

    True for even contexts. Where contexts belong together, as those of a labelled document do, it
    is true for a random half of these groups.
    """
    group = batch.contexts.group
    if group is None:
        chosen = np.arange(batch.first, batch.first + len(batch.tokens)) % 2 == 0
    else:
        # The highest bit of a multiplicative hash, since rows of a file often alternate.
        chosen = group.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(63) == 0
    mask = batch.mask.cpu().numpy()
    return np.broadcast_to(chosen[:, None], mask.shape)[mask]

"""Held-out text through the model and the SAE: what every evaluation starts from."""

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
from saelab.lm.protocol import LanguageModel
from saelab.training.run import Run


@dataclass(frozen=True)
class TextBatch:
    """A few contexts and the activations of the run's site on them.

    Attributes:
        first: index of the first context in the corpus.
        tokens: as the model reads them (padding replaced).
        mask: positions that are real, non-special tokens; only these count and are edited.
        x: the rows of those positions, in reading order.
        logits: the model's next-token logits, where they were asked for.
        target: what the run reconstructs at those positions, if that is not `x` (transcoders).
    """

    first: int
    contexts: Contexts
    tokens: Int[Tensor, "context pos"]
    mask: Bool[Tensor, "context pos"]
    x: Float[Tensor, "row d_in"]
    logits: Float[Tensor, "context pos d_vocab"] | None = None
    target: Float[Tensor, "row d_out"] | None = None

    @property
    def wanted(self) -> Float[Tensor, "row d_out"]:
        """What is to be reconstructed: the target, or `x` itself."""
        return self.x if self.target is None else self.target

    def labels(self) -> Bool[ndarray, "row label"] | None:
        """Ground-truth labels of the rows, where the corpus has any."""
        labels = self.contexts.labels
        return None if labels is None else labels[self.mask.cpu().numpy()]


def corpus_of(run: Run, lm: LanguageModel, split: Split) -> Corpus:
    """The text that the run was trained on, or the part of it that was held out.

    Raises:
        UsageError: the run came from arrays without text, or from another model than `lm`, or the
            text has changed since.
    """
    record = run.provenance()
    check_model(lm, run)
    facts = record["corpus"]
    if facts is None:
        raise UsageError(f"{run.path} was trained on arrays without text, so it has no corpus.")
    kept = Path(run.config.activations)
    return recorded_corpus(facts, lm, split, record["context_length"], kept=kept)


def check_model(lm: LanguageModel, run: Run) -> None:
    """Refuse a model other than the one whose activations the run was trained on.

    Raises:
        UsageError: the weights or the tokenizer differ, or the run knows of no model.
    """
    trained_on = run.model()
    for field in ("weights_digest", "tokenizer_digest"):
        here = getattr(lm.info, field)
        if trained_on[field] != here:
            raise UsageError(
                f"{run.path} was trained on {trained_on['name']} ({field} "
                f"{trained_on[field][:12]}), not on {lm.info.name} ({here[:12]}); pass --model."
            )


@dataclass(frozen=True)
class Text:
    """A few contexts as the model reads them; the fields are those of `TextBatch`."""

    first: int
    contexts: Contexts
    tokens: Int[Tensor, "context pos"]
    mask: Bool[Tensor, "context pos"]


def read_text(
    lm: LanguageModel, corpus: Corpus, *, n_tokens: int, batch_size: int
) -> Iterator[Text]:
    """Batches of `batch_size` contexts until at least `n_tokens` rows, or the corpus, are done."""
    rows, first = 0, 0
    while rows < n_tokens and (last := corpus.available(first + batch_size)) > first:
        contexts = corpus.read(first, last)
        mask = row_mask(lm, contexts.tokens, contexts.columns)
        kept = torch.from_numpy(mask).to(lm.device)
        yield Text(first, contexts, model_input(contexts.tokens).to(lm.device), kept)
        rows, first = rows + int(mask.sum()), last


def stream(
    run: Run,
    lm: LanguageModel,
    corpus: Corpus,
    *,
    n_tokens: int,
    batch_size: int,
    with_logits: bool = False,
) -> Iterator[TextBatch]:
    """The batches of `read_text` with the rows of the run's site, and of its target site if any.

    One forward pass a batch; it stops at the sites unless the logits are asked for.
    """
    site, target_site = run.config.site, run.config.target_site
    sites = [site] if target_site is None else [site, target_site]
    for text in read_text(lm, corpus, n_tokens=n_tokens, batch_size=batch_size):
        if with_logits:
            out = lm.run(text.tokens, hooks=sites)
            found, logits = out.activations, out.logits
        else:
            found, logits = lm.capture(text.tokens, sites), None
        rows = [found[name][text.mask].float() for name in sites]
        target = None if target_site is None else rows[1]
        yield TextBatch(
            text.first, text.contexts, text.tokens, text.mask, rows[0], logits, target=target
        )


def half_by_context(batch: TextBatch) -> Bool[ndarray, " row"]:
    """True for about half the rows: the halves share no context, so neither leaks.

    Even contexts; where contexts belong together, such as those of a document with labels of its
    own, a random half of these groups.
    """
    group = batch.contexts.group
    if group is None:
        chosen = np.arange(batch.first, batch.first + len(batch.tokens)) % 2 == 0
    else:
        # By the highest bit of a multiplicative hash: rows of a file often alternate.
        chosen = group.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(63) == 0
    mask = batch.mask.cpu().numpy()
    return np.broadcast_to(chosen[:, None], mask.shape)[mask]

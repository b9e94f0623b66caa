"""Harvesting: a language model and a text become an activation store."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from pydantic import JsonValue
from torch import Tensor

from saelab.activations.columns import Columns
from saelab.activations.corpus import PADDING, Contexts, Corpus
from saelab.activations.dtypes import TORCH
from saelab.activations.format import Dtype, Manifest, SiteSpec
from saelab.activations.store import ActivationStore
from saelab.activations.writer import StoreWriter
from saelab.config import UsageError
from saelab.console import Bar, progress
from saelab.lm.protocol import LanguageModel
from saelab.provenance import provenance

BYTES_PER_UNIT_FILE = 256 << 20


@dataclass(frozen=True)
class HarvestOptions:
    """How to harvest; none of it but `dtype`, `n_tokens` and `seed` changes what is stored."""

    n_tokens: int
    dtype: Dtype = "bfloat16"
    batch_size: int = 32
    seed: int = 0


def harvest(
    lm: LanguageModel,
    hooks: Sequence[str],
    corpus: Corpus,
    *,
    out: str | Path,
    options: HarvestOptions,
) -> ActivationStore:
    """The store of `lm`'s activations at `hooks` over at least `n_tokens` tokens of `corpus`.

    One forward pass a batch serves all hooks and stops at the last of them. Special tokens and
    padding get no row; their counts are recorded. An interrupted harvest continues when it is
    called again with the same arguments.

    Raises:
        UsageError: a hook does not exist, the text is too short, the disk is too small, or `out`
            holds another store.
    """
    manifest = plan(lm, hooks, corpus, options)
    with StoreWriter.create(out, manifest) as writer:
        missing = writer.missing_units()
        total, left = (
            sum(len(manifest.unit_contexts(unit)) for unit in units) * corpus.context_length
            for units in (range(manifest.n_units), missing)
        )
        with progress("Harvest", total, "tokens", done=total - left) as bar:
            for unit in missing:
                span = manifest.unit_contexts(unit)
                contexts = corpus.read(span.start, span.stop)
                writer.write_unit(unit, *_unit(lm, hooks, contexts, span.start, options, bar))
    return ActivationStore(out)


def plan(
    lm: LanguageModel, hooks: Sequence[str], corpus: Corpus, options: HarvestOptions
) -> Manifest:
    """The manifest of the store that `harvest` would write; checks everything that can be checked.

    Raises:
        UsageError: as for `harvest`.
    """
    if len(set(hooks)) < len(hooks) or not hooks:
        raise UsageError(
            f"Name each site once, and at least one; got {', '.join(hooks) or 'none'}."
        )
    special: list[JsonValue] = [*sorted(lm.info.special_token_ids)]
    sites = tuple(SiteSpec(hook=hook, d_in=lm.width(hook)) for hook in hooks)
    widest = max(site.d_in for site in sites) * TORCH[options.dtype].itemsize
    return Manifest(
        model=lm.info.model_dump(mode="json"),
        sites=sites,
        dtype=options.dtype,
        context_length=corpus.context_length,
        rows_policy={
            "excluded_token_ids": special,
            "padding": "excluded",
        },
        label_names=corpus.label_names,
        corpus=corpus.facts,
        contexts_per_unit=max(1, BYTES_PER_UNIT_FILE // (widest * corpus.context_length)),
        n_contexts=_contexts_needed(lm, corpus, options.n_tokens),
        seed=options.seed,
        provenance=provenance(device=str(lm.device), batch_size=options.batch_size),
    )


def row_mask(lm: LanguageModel, tokens: Int[ndarray, "*shape"]) -> Bool[ndarray, "*shape"]:
    """Which positions become rows: all but special tokens and padding."""
    return ~np.isin(tokens, [PADDING, *lm.info.special_token_ids])


def model_input(tokens: Int[ndarray, "context pos"]) -> Int[Tensor, "context pos"]:
    """Token ids a model accepts. Padding stands at the end, where no real token can see it."""
    return torch.from_numpy(np.where(tokens == PADDING, 0, tokens).astype(np.int64))


def _contexts_needed(lm: LanguageModel, corpus: Corpus, n_tokens: int) -> int:
    if n_tokens <= 0:
        raise UsageError(f"--n-tokens is {n_tokens}; ask for at least one token.")
    if corpus.n_contexts is None:
        rows = int(row_mask(lm, corpus.read(0, 1).tokens).sum())
        return -(-n_tokens // rows)
    per_context = row_mask(lm, corpus.read(0, corpus.n_contexts).tokens).sum(axis=1)
    reached = np.cumsum(per_context)
    if reached[-1] < n_tokens:
        raise UsageError(
            f"The text has {reached[-1]} tokens for training, {n_tokens} were asked for; lower "
            "--n-tokens or give more text."
        )
    return int(np.searchsorted(reached, n_tokens)) + 1


def _unit(
    lm: LanguageModel,
    hooks: Sequence[str],
    contexts: Contexts,
    first: int,
    options: HarvestOptions,
    bar: Bar,
) -> tuple[dict[str, Float[Tensor, "row d_in"]], Columns]:
    mask = row_mask(lm, contexts.tokens)
    kept: dict[str, list[Tensor]] = {hook: [] for hook in hooks}
    for start in range(0, len(mask), options.batch_size):
        tokens = contexts.tokens[start : start + options.batch_size]
        rows = torch.from_numpy(mask[start : start + options.batch_size])
        for hook, value in lm.capture(model_input(tokens), hooks).items():
            kept[hook].append(value[rows].to("cpu", TORCH[options.dtype]))
        bar.advance(tokens.size)
    return {hook: torch.cat(parts) for hook, parts in kept.items()}, _columns(contexts, first, mask)


def _columns(contexts: Contexts, first: int, mask: Bool[ndarray, "context pos"]) -> Columns:
    context, position = mask.nonzero()
    padding = int((contexts.tokens == PADDING).sum())
    return Columns(
        token=contexts.tokens[mask],
        position=position,
        context=context + first,
        document=contexts.document[context],
        contexts=contexts.tokens,
        labels=None if contexts.labels is None else contexts.labels[mask],
        excluded={"padding": padding, "special": int((~mask).sum()) - padding},
    )

"""Harvesting: a language model and a text become an activation store."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from saelab.activations.background import BackgroundWriter
from saelab.activations.corpus import Corpus
from saelab.activations.dtypes import TORCH
from saelab.activations.format import Dtype, Manifest, SiteSpec
from saelab.activations.forward import model_input, row_mask, unit_columns, unit_rows
from saelab.activations.ranks import Ranks
from saelab.activations.store import ActivationStore
from saelab.activations.writer import StoreWriter
from saelab.config import UsageError
from saelab.console import progress
from saelab.lm.protocol import ActivationSource
from saelab.provenance import provenance

__all__ = ["HarvestOptions", "harvest", "model_input", "plan", "record", "row_mask"]

UNIT_CONTEXTS = 512
"""A block of 1024 rows then has two rows of each context on average: mixed well enough that 16
batches of 4096 have a design effect of 1.3 (see `mixing`)."""
COUNTED_CONTEXTS = 2**14
"""Contexts whose tokens are counted at a time."""
UNIT_BYTES = 2**29
"""The most that a unit takes, all sites together; a harvest holds 5 to 9 times as much."""


@dataclass(frozen=True)
class HarvestOptions:
    """How to harvest; `batch_size` alone does not change what is stored."""

    n_tokens: int
    dtype: Dtype = "bfloat16"
    batch_size: int = 32
    seed: int = 0
    gradients: bool = False
    """Store dL/dx of the summed next-token loss beside every site."""


def harvest(
    lm: ActivationSource,
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
    return record(lm, corpus, plan(lm, hooks, corpus, options), out=out, options=options)


def record(
    lm: ActivationSource,
    corpus: Corpus,
    manifest: Manifest,
    *,
    out: str | Path,
    options: HarvestOptions,
    ranks: Ranks | None = None,
) -> ActivationStore:
    """The store that `manifest`, made by `plan` from the same arguments, describes.

    Several processes may record one store at once, each with its own `ranks`; the store is
    complete when the last of them is done. Writing runs beside the forward passes of the next unit.

    Raises:
        UsageError: as for `harvest`.
    """
    ranks = ranks or Ranks()
    with StoreWriter.create(out, manifest, ranks) as writer:
        missing = writer.missing_units()
        own = [unit for unit in range(manifest.n_units) if ranks.owns(unit)]
        total, left = (
            sum(len(manifest.unit_contexts(unit)) for unit in units) * corpus.context_length
            for units in (own, missing)
        )
        title = "Harvest" if ranks.world == 1 else f"Harvest, process {ranks.rank}"
        with (
            progress(title, total, "tokens", done=total - left) as bar,
            BackgroundWriter(writer) as background,
        ):
            for unit in missing:
                span = manifest.unit_contexts(unit)
                contexts = corpus.read(span.start, span.stop)
                # Not kept here: the rows' memory is free again once the writer has prepared them.
                background.write_unit(
                    unit,
                    unit_rows(
                        lm,
                        manifest.sites,
                        contexts,
                        dtype=TORCH[manifest.dtype],
                        batch_size=options.batch_size,
                        advance=bar.advance,
                    ),
                    unit_columns(lm, contexts, span.start),
                )
    return ActivationStore(out)


def plan(
    lm: ActivationSource, hooks: Sequence[str], corpus: Corpus, options: HarvestOptions
) -> Manifest:
    """The manifest of the store that `harvest` would write; checks everything that can be checked.

    Raises:
        UsageError: as for `harvest`.
    """
    special: list[JsonValue] = [*sorted(lm.info.special_token_ids)]
    sites = _sites(lm, hooks, options)
    row_bytes = sum(site.d_in for site in sites) * TORCH[options.dtype].itemsize
    fitting = UNIT_BYTES // (row_bytes * corpus.context_length)
    return Manifest(
        model=lm.info.model_dump(mode="json"),
        sites=sites,
        dtype=options.dtype,
        context_length=corpus.context_length,
        rows_policy={"excluded_token_ids": special, "padding": "excluded"},
        label_names=corpus.label_names,
        corpus=corpus.facts,
        contexts_per_unit=max(1, min(UNIT_CONTEXTS, fitting)),
        n_contexts=_contexts_needed(lm, corpus, options.n_tokens),
        seed=options.seed,
        provenance=provenance(
            device=str(lm.device), batch_size=options.batch_size, backend=type(lm).__name__
        ),
    )


def _sites(
    lm: ActivationSource, hooks: Sequence[str], options: HarvestOptions
) -> tuple[SiteSpec, ...]:
    if len(set(hooks)) < len(hooks) or not hooks:
        raise UsageError(
            f"Name each site once, and at least one; got {', '.join(hooks) or 'none'}."
        )
    if options.gradients and options.dtype == "float16":
        raise UsageError(
            "Gradients span more orders of magnitude than float16 has; store them as bfloat16, "
            "which has the range of float32, or as float32."
        )
    widths = {hook: lm.width(hook) for hook in hooks}
    kinds = ("activation", "gradient") if options.gradients else ("activation",)
    return tuple(SiteSpec(hook=h, d_in=d, kind=kind) for kind in kinds for h, d in widths.items())


def _contexts_needed(lm: ActivationSource, corpus: Corpus, n_tokens: int) -> int:
    if n_tokens <= 0:
        raise UsageError(f"--n-tokens is {n_tokens}; ask for at least one token.")
    if corpus.n_contexts is None:
        rows = int(row_mask(lm, corpus.read(0, 1).tokens).sum())
        return -(-n_tokens // rows)
    found = 0
    for start in range(0, corpus.n_contexts, COUNTED_CONTEXTS):
        contexts = corpus.read(start, min(start + COUNTED_CONTEXTS, corpus.n_contexts))
        reached = found + np.cumsum(row_mask(lm, contexts.tokens).sum(axis=1))
        if reached[-1] >= n_tokens:
            return start + int(np.searchsorted(reached, n_tokens)) + 1
        found = int(reached[-1])
    raise UsageError(
        f"The text has {found} tokens for training, {n_tokens} were asked for; lower --n-tokens or "
        "give more text."
    )

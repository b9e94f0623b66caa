"""Harvesting: from a language model and a text to an activation store."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import JsonValue

from saelab.activations.background import BackgroundWriter
from saelab.activations.corpus import Corpus, TextCorpus
from saelab.activations.format import (
    GRADIENT_RANGE,
    PACKED,
    UNTIL,
    Dtype,
    JsonObject,
    Manifest,
    SiteSpec,
)
from saelab.activations.forward import model_input, row_mask, unit_columns, unit_rows
from saelab.activations.packing import Packing, StoredContexts, pays, require
from saelab.activations.parallel import one_ahead
from saelab.activations.store import ActivationStore
from saelab.activations.tensor_rows import TORCH
from saelab.activations.windows import KEPT
from saelab.activations.writer import StoreWriter
from saelab.config import UsageError
from saelab.console import progress, say
from saelab.lm.protocol import ActivationSource
from saelab.provenance import provenance
from saelab.ranks import Ranks

__all__ = ["HarvestOptions", "harvest", "model_input", "plan", "record", "row_mask"]

UNIT_CONTEXTS = 512
"""Contexts per unit. With it a block of 1024 rows has two rows of each context on average, and 16
batches of 4096 have a design effect of 1.3 (see `mixing`)."""
COUNTED_TOKENS = 2**19
"""Longer harvests are planned by an estimate, if the text seems to have `ENOUGH` times as many
tokens."""
ENOUGH, SPARE = 1.25, 1.02
CONTEXTS, GPU_POSITIONS = 32, 2**15
UNIT_BYTES = 2**29
"""Largest size of a unit, all sites together; a harvest holds 5 to 13 times as much in memory."""


@dataclass(frozen=True)
class HarvestOptions:
    """How to harvest; only `batch_size` does not change what is stored."""

    n_tokens: int
    dtype: Dtype = "bfloat16"
    batch_size: int | None = None
    seed: int = 0
    gradients: bool = False
    """Store dL/dx of the summed next-token loss beside every site."""

    def contexts_at_once(self, device: torch.device, context_length: int) -> int:
        """Contexts per forward pass: `batch_size`, or by default what suits the device.

        A small model's pass over few positions takes longer to start than a GPU needs for it.
        Backward passes keep all activations in memory.
        """
        if self.batch_size is not None:
            return self.batch_size
        if device.type != "cuda" or self.gradients:
            return CONTEXTS
        return max(CONTEXTS, GPU_POSITIONS // context_length)


def harvest(
    lm: ActivationSource,
    hooks: Sequence[str],
    corpus: Corpus,
    *,
    out: str | Path,
    options: HarvestOptions,
) -> ActivationStore:
    """The store of `lm`'s activations at `hooks` over at least `n_tokens` tokens of `corpus`.

    One forward pass per batch serves all hooks and stops at the last hook. Special tokens and
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
    """The store that `manifest` describes; `plan` made it from the same arguments.

    Several processes may record one store at once, each with its own `ranks`; the store is complete
    when the last process is done. Units are written while the next unit's forward passes run.

    Raises:
        UsageError: as for `harvest`.
    """
    ranks = ranks or Ranks()
    packing = packing_of(lm, corpus, manifest, options)
    at_once = options.contexts_at_once(lm.device, manifest.context_length)
    with StoreWriter.create(out, manifest, ranks) as writer, _tokens_kept(corpus, out, ranks):
        missing = set(writer.missing_units())
        planned = sum(ranks.owns(unit) for unit in range(manifest.n_units))
        share = options.n_tokens // ranks.world
        title = "Harvest" if ranks.world == 1 else f"Harvest, process {ranks.rank}"
        with (
            progress(title, share, "tokens", done=share - share * len(missing) // planned) as bar,
            BackgroundWriter(writer) as background,
        ):
            for unit, first, contexts in one_ahead(_own_units(packing, writer)):
                # No reference is kept here, so the rows' memory is free once the writer has
                # prepared them.
                background.write_unit(
                    unit,
                    unit_rows(
                        lm,
                        manifest.sites,
                        contexts,
                        dtype=TORCH[manifest.dtype],
                        batch_size=at_once,
                        advance=bar.advance,
                    ),
                    unit_columns(lm, contexts, first),
                )
        if not corpus.endless:
            _warn_of_the_end(packing, options.n_tokens)
    return ActivationStore(out)


def _own_units(packing: Packing, writer: StoreWriter) -> Iterator[tuple[int, int, StoredContexts]]:
    """This process's missing units, their first contexts and contexts; updates the plan.

    Nobody knows the last unit until a long text is counted; each process finds out by itself.
    """
    per_unit = writer.manifest.contexts_per_unit
    unit = writer.ranks.rank
    while True:
        span = range(unit * per_unit, packing.available((unit + 1) * per_unit))
        if packing.complete:
            writer.replan(packing.n_contexts, packing.text())
        elif span.stop > writer.manifest.n_contexts:
            writer.replan(2 * span.stop)
        if not len(span):
            return
        if not writer.has(unit):
            yield unit, span.start, packing.read(span.start, span.stop)
        unit += writer.ranks.world


@contextmanager
def _tokens_kept(corpus: Corpus, out: str | Path, ranks: Ranks) -> Iterator[None]:
    """Keep the tokens of a text in its store, and read the text ahead of the model."""
    if not isinstance(corpus, TextCorpus):
        yield
        return
    corpus.keep_in(Path(out) / KEPT, ranks)
    with corpus.ahead():
        yield


def _warn_of_the_end(packing: Packing, n_tokens: int) -> None:
    if packing.complete and packing.n_rows < n_tokens:
        say(
            f"warning: the text ended after {packing.n_rows} of {n_tokens} tokens; the store holds "
            "all of it."
        )


def packing_of(
    lm: ActivationSource, corpus: Corpus, manifest: Manifest, options: HarvestOptions
) -> Packing:
    """The contexts that this manifest plans."""
    # Contexts of a text are counted again, which is fast, since its tokens are kept.
    known = None if isinstance(corpus, TextCorpus) else manifest.n_contexts
    return Packing(lm, corpus, options.n_tokens, packed=manifest.packed, n_contexts=known)


def plan(
    lm: ActivationSource, hooks: Sequence[str], corpus: Corpus, options: HarvestOptions
) -> Manifest:
    """The manifest of the store that `harvest` would write, after every possible check.

    Raises:
        UsageError: as for `harvest`.
    """
    sites = _sites(lm, hooks, options)
    if options.n_tokens <= 0:
        raise UsageError(f"--n-tokens is {options.n_tokens}; ask for at least one token.")
    row_bytes = sum(site.d_in for site in sites) * TORCH[options.dtype].itemsize
    fitting = UNIT_BYTES // (row_bytes * corpus.context_length)
    per_unit = max(1, min(UNIT_CONTEXTS, fitting))
    with corpus.ahead() if isinstance(corpus, TextCorpus) else nullcontext():
        packed = pays(corpus)
        n_contexts, text = _counted(lm, corpus, options.n_tokens, packed=packed)
    facts = corpus.facts
    if text is None:
        facts, n_contexts = (
            {**facts, UNTIL: options.n_tokens},
            -(-n_contexts // per_unit) * per_unit,
        )
    special: list[JsonValue] = [*sorted(lm.info.special_token_ids)]
    policy: JsonObject = {"excluded_token_ids": special, "padding": "excluded"}
    return Manifest(
        model=lm.info.model_dump(mode="json"),
        sites=sites,
        dtype=options.dtype,
        context_length=corpus.context_length,
        rows_policy={**policy, "contexts": PACKED} if packed else policy,
        label_names=corpus.label_names,
        corpus=facts,
        contexts_per_unit=per_unit,
        n_contexts=n_contexts,
        seed=options.seed,
        provenance=provenance(
            device=str(lm.device),
            batch_size=options.contexts_at_once(lm.device, corpus.context_length),
            backend=type(lm).__name__,
            **({"text": text} if text else {}),
        ),
    )


def _counted(
    lm: ActivationSource, corpus: Corpus, n_tokens: int, *, packed: bool
) -> tuple[int, JsonObject | None]:
    """The number of contexts with this many rows, and their contents; or an estimate, and None.

    A long text that seems to have enough tokens is counted while it is recorded.
    """
    if corpus.endless:
        rows = int(row_mask(lm, corpus.read(0, 1).tokens).sum())
        return -(-n_tokens // rows), {}
    packing = Packing(lm, corpus, n_tokens, packed=packed)
    packing.count(COUNTED_TOKENS)
    expected = packing.rows_each * corpus.expected if isinstance(corpus, TextCorpus) else 0
    if not packing.complete and expected > ENOUGH * n_tokens:
        return int(SPARE * n_tokens * packing.n_contexts / packing.n_rows) + 1, None
    packing.count()
    require(packing, n_tokens)
    return packing.n_contexts, packing.text()


def _sites(
    lm: ActivationSource, hooks: Sequence[str], options: HarvestOptions
) -> tuple[SiteSpec, ...]:
    if len(set(hooks)) < len(hooks) or not hooks:
        raise UsageError(
            f"Name each site once, and at least one; got {', '.join(hooks) or 'none'}."
        )
    if options.gradients and options.dtype == "float16":
        raise UsageError(GRADIENT_RANGE)
    widths = {hook: lm.width(hook) for hook in hooks}
    kinds = ("activation", "gradient") if options.gradients else ("activation",)
    return tuple(SiteSpec(hook=h, d_in=d, kind=kind) for kind in kinds for h, d in widths.items())

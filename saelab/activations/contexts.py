"""Whole contexts of a store for a live model, in an order that depends only on (seed, epoch)."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from typing_extensions import override

from saelab.activations.forward import model_input
from saelab.activations.order import Blocks, EpochPlan
from saelab.activations.resume import check_same_order, store_digest
from saelab.activations.sequences import Sequences
from saelab.activations.store import ActivationStore
from saelab.config import UsageError
from saelab.formats.json_file import canonical_digest

POOL_TOKENS = 2**22


@dataclass(frozen=True)
class TokenBatch:
    """Contexts for a live model; a context with several sequences is served as its sequences.

    Attributes:
        tokens: token ids as the model reads them (padding replaced).
        mask: positions that have a row in the store; special tokens and padding do not.
    """

    tokens: Int[Tensor, "context pos"]
    mask: Bool[Tensor, "context pos"]


@dataclass(frozen=True)
class _ContextGroup:
    """Contexts in memory in the order of serving, from `start` to `stop`."""

    start: int
    stop: int
    tokens: Int[np.ndarray, "context pos"]
    mask: Bool[np.ndarray, "context pos"]


class ContextBatches(Iterator[TokenBatch]):
    """An endless iterator of contexts; each epoch serves every committed context exactly once.

    An epoch permutes the store's units and cuts them into groups of about `pool_tokens` positions.
    It serves the contexts of each group in random order. A batch may span groups and epochs.
    Memory: a group at 5 bytes per position, and one unit's columns while a group is read. Contexts
    of `skip_units` are never served.

        batches = ContextBatches(store, 32, seed=0)
        logits = lm.run(next(batches).tokens).logits

    Raises:
        UsageError: the store has no text, a unit to skip is not in it, or no context is left.
    """

    def __init__(
        self,
        store: ActivationStore,
        contexts_per_batch: int,
        *,
        seed: int = 0,
        pool_tokens: int = POOL_TOKENS,
        skip_units: Collection[int] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        if contexts_per_batch < 1 or pool_tokens < 1:
            raise UsageError(
                f"contexts_per_batch={contexts_per_batch} and pool_tokens={pool_tokens} must be at "
                "least 1."
            )
        self.contexts_per_batch = contexts_per_batch
        self._store, self._device = store, torch.device(device)
        self._units = _served_units(store, skip_units)
        self._table = _unit_table(store, self._units)
        self._order = {
            "seed": seed,
            "pool_tokens": pool_tokens,
            "contexts_per_batch": contexts_per_batch,
            "skip_units": canonical_digest(sorted(set(skip_units))),
            "store": store_digest(store),
        }
        pool = max(1, pool_tokens // store.manifest.context_length)
        self._plan = lru_cache(maxsize=2)(
            lambda epoch: EpochPlan.create(self._table, pool, seed=seed, epoch=epoch)
        )
        self._served = 0
        self._group: _ContextGroup | None = None

    @property
    def contexts_served(self) -> int:
        """Contexts served so far, over all epochs."""
        return self._served

    @override
    def __next__(self) -> TokenBatch:
        start, stop = self._served, self._served + self.contexts_per_batch
        tokens, mask = [], []
        while start < stop:
            group = self._group_at(start)
            end = min(stop, group.stop)
            inside = slice(start - group.start, end - group.start)
            tokens.append(group.tokens[inside])
            mask.append(group.mask[inside])
            start = end
        self._served = stop
        table, kept = _apart(np.concatenate(tokens), np.concatenate(mask))
        return TokenBatch(
            model_input(table).to(self._device), torch.from_numpy(kept).to(self._device)
        )

    def state_dict(self) -> dict[str, int | str]:
        """The position of the next batch, JSON-ready; once loaded, the next batch is bit-equal."""
        return {"contexts_served": self._served, **self._order}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Continue from a `state_dict`.

        Raises:
            UsageError: the state was taken from another store, seed or size, or with other units
                skipped.
        """
        check_same_order(self._order, state)
        self._served = int(state["contexts_served"])
        self._group = None

    def _group_at(self, context: int) -> _ContextGroup:
        """The group that serves this context, counted over all epochs."""
        if self._group is None or not self._group.start <= context < self._group.stop:
            # The old group is dropped before the new one is read, so that memory holds only one.
            self._group = None
            self._group = self._load(context)
        return self._group

    def _load(self, context: int) -> _ContextGroup:
        epoch, inside = divmod(context, self._table.n_rows)
        plan = self._plan(epoch)
        group = plan.group_of(inside)
        start, stop = (epoch * self._table.n_rows + int(plan.rows[group + i]) for i in (0, 1))
        units = [self._units[block] for block in plan.group_blocks(group)]
        tokens, mask = _read(self._store, units, plan.row_order(group))
        return _ContextGroup(start, stop, tokens, mask)


def _apart(
    contexts: Int[np.ndarray, "context pos"], mask: Bool[np.ndarray, "context pos"]
) -> tuple[Int[np.ndarray, "sequence longest"], Bool[np.ndarray, "sequence longest"]]:
    """The sequences of packed contexts, padded to the longest; other contexts as they are."""
    sequences = Sequences.of(contexts)
    if not sequences.side_by_side:
        return contexts, mask
    tokens, place = sequences.padded()
    return tokens, (place >= 0) & mask.ravel()[place]


def _read(
    store: ActivationStore, units: Sequence[int], order: Int[np.ndarray, " context"]
) -> tuple[Int[np.ndarray, "context pos"], Bool[np.ndarray, "context pos"]]:
    """The units' contexts in this order, and the positions that have a row."""
    shape = len(order), store.manifest.context_length
    tokens, mask = np.empty(shape, dtype=np.int32), np.zeros(shape, dtype=bool)
    place = np.argsort(order)
    for unit in units:
        columns = store.tokens(unit)
        contexts = store.manifest.unit_contexts(unit)
        to, place = place[: len(contexts)], place[len(contexts) :]
        tokens[to] = columns.contexts
        mask[to[columns.context.astype(np.int64) - contexts.start], columns.position] = True
    return tokens, mask


def _served_units(store: ActivationStore, skip: Collection[int]) -> tuple[int, ...]:
    """The committed units except those to skip."""
    if store.manifest.model is None:
        raise UsageError(
            f"{store.path} holds arrays without a language model or text, so it has no contexts "
            "to run a model on; record a model's activations with saelab harvest."
        )
    if unknown := sorted(set(skip) - set(store.units)):
        raise UsageError(f"{store.path} has no committed unit {unknown[0]} to skip.")
    units = tuple(unit for unit in store.units if unit not in set(skip))
    if not units:
        raise UsageError(
            f"{store.path} has {len(store.units)} committed units, of which {len(set(skip))} are "
            "skipped; at least one must be left."
        )
    return units


def _unit_table(store: ActivationStore, units: tuple[int, ...]) -> Blocks:
    """The contexts as rows of a table, with one block per unit."""
    sizes = tuple(len(store.manifest.unit_contexts(unit)) for unit in units)
    return Blocks.of_units(sizes, store.manifest.contexts_per_unit)

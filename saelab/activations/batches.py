"""Batches in a shuffled order that depends only on (seed, epoch)."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, Integer
from torch import Tensor
from typing_extensions import override

from saelab.activations import POOL_ROWS
from saelab.activations.order import EpochPlan
from saelab.activations.resume import check_same_order, store_digest
from saelab.activations.staging import Staging
from saelab.activations.store import ActivationStore
from saelab.config import UsageError
from saelab.formats.json_file import canonical_digest
from saelab.types import ActivationBatch

GATHER_ROWS = 128


@dataclass(frozen=True)
class BatchSites:
    """Which sites fill a batch: `x`, and optionally `target` or `grad` at the same rows.

    Rows of `held_back` blocks (indices into `store.blocks`) and `left_out` rows (sorted indices in
    store order) are never served. Of each batch only the rows in `part` are returned, if given.
    """

    x: str
    target: str | None = None
    grad: str | None = None
    held_back: tuple[int, ...] = ()
    left_out: Int64[np.ndarray, " n"] = field(default_factory=lambda: np.empty(0, np.int64))
    part: slice | None = None


@dataclass(frozen=True)
class _RowGroup:
    """Rows in memory: those served from `start` to `stop`, counted over all epochs."""

    start: int
    stop: int
    order: Int[Tensor, " served"]
    rows: dict[str, Float[Tensor, "row _"]]
    place: Staging
    """The memory that holds the rows."""


class ShuffledBatches(Iterator[ActivationBatch]):
    """An endless iterator of float32 batches; each epoch serves every row exactly once.

    An epoch permutes the store's blocks and cuts them into groups of about `pool_rows` rows. It
    serves the rows of each group in random order, while a thread reads the next group. A batch may
    span groups and epochs. Memory: two groups of every site, in the stored dtype.

        batches = ShuffledBatches(store, "blocks.1.hook_resid_post", 4096, seed=0)
        x = next(batches).x

    Raises:
        UsageError: a site does not exist, `grad` does not fit `x`, or no row is left to serve.
    """

    def __init__(
        self,
        store: ActivationStore,
        sites: str | BatchSites,
        batch_size: int,
        *,
        seed: int = 0,
        pool_rows: int = POOL_ROWS,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1 or pool_rows < 1:
            raise UsageError(
                f"batch_size={batch_size} and pool_rows={pool_rows} must be at least 1."
            )
        self.sites = sites if isinstance(sites, BatchSites) else BatchSites(sites)
        self.batch_size = batch_size
        names = (self.sites.x, self.sites.target, self.sites.grad)
        self._views = {name: store.site(name) for name in names if name is not None}
        self._check_gradient(store)
        self._table = store.blocks
        self._device = torch.device(device)
        self._order = {
            "seed": seed,
            "pool_rows": pool_rows,
            "held_back": canonical_digest(self.sites.held_back),
            "store": store_digest(store),
        }
        if len(self.sites.left_out):
            self._order["left_out"] = canonical_digest(self.sites.left_out.tolist())
        counts = self._table.count - self._left_out_by_block()
        withheld = np.asarray(self.sites.held_back, dtype=np.int64)
        self._epoch_rows = int(counts.sum() - counts[withheld].sum())
        if not self._epoch_rows:
            raise UsageError(
                f"All {self._table.n_rows} rows of {store.path} are held back or left out."
            )
        table, held_back = self._table, self.sites.held_back
        # Without self, which would keep large memory alive until the next garbage collection.
        self._plan = lru_cache(maxsize=2)(
            lambda epoch: EpochPlan.create(
                table, pool_rows, seed=seed, epoch=epoch, held_back=held_back, served=counts
            )
        )
        self._places = (Staging(self._device), Staging(self._device))
        self._served = 0
        self._group: _RowGroup | None = None
        self._ahead: Future[_RowGroup] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="activations")
        self._sorter = ThreadPoolExecutor(1, thread_name_prefix="order")

    @property
    def rows_served(self) -> int:
        """Rows served so far, over all epochs."""
        return self._served

    @override
    def __next__(self) -> ActivationBatch:
        part = self.sites.part or slice(0, self.batch_size)
        start, stop = self._served + part.start, self._served + part.stop
        pieces: dict[str, list[Float[Tensor, "row _"]]] = {name: [] for name in self._views}
        while start < stop:
            group = self._group_at(start)
            end = min(stop, group.stop)
            order = group.order[start - group.start : end - group.start]
            for name, rows in group.rows.items():
                pieces[name].append(_gather(rows, order))
            start = end
        self._served += self.batch_size
        whole = {n: p[0] if len(p) == 1 else torch.cat(p) for n, p in pieces.items()}
        sites = self.sites
        return ActivationBatch(
            whole[sites.x],
            target=None if sites.target is None else whole[sites.target],
            grad=None if sites.grad is None else whole[sites.grad],
        )

    def state_dict(self) -> dict[str, int | str]:
        """The position of the next batch, JSON-ready; once loaded, the next batch is bit-equal."""
        return {"rows_served": self._served, **self._order}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Continue from a `state_dict`.

        Raises:
            UsageError: the state was taken from another store, seed or pool size.
        """
        check_same_order(self._order, state)
        if self._ahead is not None:
            # The thread writes into memory that the next group may use.
            self._ahead.result()
        if self._group is not None:
            self._group.place.release()
        self._served = int(state["rows_served"])
        self._group = self._ahead = None

    def _check_gradient(self, store: ActivationStore) -> None:
        if self.sites.grad is None:
            return
        # A transcoder's latents act on the loss at its target site.
        x, grad = (
            store.one_site(name).spec
            for name in (self.sites.target or self.sites.x, self.sites.grad)
        )
        if grad.kind != "gradient" or grad.hook != x.hook:
            raise UsageError(f"{grad.name} does not hold gradients with respect to {x.name}.")

    def _group_at(self, row: int) -> _RowGroup:
        """The group that serves this row; a thread reads the next group."""
        if self._group is None or not self._group.start <= row < self._group.stop:
            ahead = self._ahead.result() if self._ahead else None
            if self._group is not None:
                self._group.place.release()
            there = ahead and ahead.start <= row < ahead.stop
            group = ahead if ahead and there else self._load(row, self._places[0])
            group.place.receive()
            free = self._places[group.place is self._places[0]]
            self._group, self._ahead = group, self._thread.submit(self._load, group.stop, free)
        return self._group

    def _load(self, row: int, place: Staging) -> _RowGroup:
        epoch, inside = divmod(row, self._epoch_rows)
        plan = self._plan(epoch)
        group = plan.group_of(inside)
        start, stop = (epoch * self._epoch_rows + int(plan.rows[group + i]) for i in (0, 1))
        blocks = plan.group_blocks(group)
        # Sorting takes as long as reading a third of the rows, and runs beside it.
        order = self._sorter.submit(self._row_order, plan, group)
        rows = place.load(self._views, blocks, int(self._table.count[blocks].sum()))
        return _RowGroup(start, stop, place.order(order.result()), rows, place)

    def _row_order(self, plan: EpochPlan, group: int) -> Int64[np.ndarray, " served"]:
        """The order in which a group's rows, as read, are served; rows left out are skipped."""
        order, left_out = plan.row_order(group), self.sites.left_out
        if not len(left_out):
            return order
        blocks = plan.group_blocks(group)
        starts, counts = self._table.start[blocks], self._table.count[blocks]
        firsts = np.searchsorted(left_out, starts)
        lasts = np.searchsorted(left_out, starts + counts)
        before = np.cumsum(counts) - counts
        served = np.ones(int(counts.sum()), dtype=bool)
        for first, last, shift in zip(firsts, lasts, before - starts, strict=True):
            served[left_out[first:last] + shift] = False
        return np.flatnonzero(served)[order]

    def _left_out_by_block(self) -> Integer[np.ndarray, " block"]:
        starts = np.append(self._table.start, self._table.n_rows)
        return np.diff(np.searchsorted(self.sites.left_out, starts))


def _gather(rows: Float[Tensor, "row d_in"], order: Int[Tensor, " n"]) -> Float[Tensor, "n d_in"]:
    """The rows in this order as float32; on a CPU a few at a time, so that they stay in cache."""
    if rows.device.type != "cpu" or rows.dtype == torch.float32:
        return rows.index_select(0, order).float()
    out = torch.empty(len(order), rows.shape[1])
    for part, chosen in zip(out.split(GATHER_ROWS), order.split(GATHER_ROWS), strict=True):
        part.copy_(rows.index_select(0, chosen))
    return out

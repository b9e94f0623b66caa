# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""The exact selection of each row's largest entries over the latents of several processes.

Each process chooses the k largest of its own latents' entries, among which are all that it has of
the k largest of all. It tells the others one integer for each: the entry's size, and behind it,
reversed, its latent. The k-th largest of all these integers is the row's limit, found bit by bit,
and a process keeps its own entries that reach it. Nothing waits for the device. While the integers
of some rows are on their way, those of others are chosen, or kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.exchange import WIDE, LatentExchange, key_bits
from saelab.kernels.sizes import power_of_two
from saelab.shard import LatentShard

MOST_AT_ONCE = 512
"""Integers that a warp holds in registers."""


class Told(NamedTuple):
    """Some rows' largest entries of this process, and what all processes tell of theirs.

    Attributes:
        values, indices: the entries, and their latents as this process numbers them.
        first: the number of the first of these rows.
        every: `[process row k]`, the integers of all processes.
    """

    values: Float[Tensor, "row own"]
    indices: Int[Tensor, "row own"]
    first: int
    every: Int[Tensor, "process row k"]


class RowPlace(NamedTuple):
    """Where the kept entries are written, row after row, and in a row budget after budget.

    Attributes:
        values, indices: 0 and the last latent beyond the end.
        rows: the budget of each entry, counted over all rows; the number of all beyond the end.
        starts: the start of each row's budgets, and the end.
    """

    values: Float[Tensor, " entry"]
    indices: Int[Tensor, " entry"]
    rows: Int[Tensor, " entry"]
    starts: Int[Tensor, " batch_budget_1"]


@triton.jit
@no_type_check
def _key_kernel(
    values, indices, keys, own, k, rank, size, LATENT: tl.constexpr, HALF: tl.constexpr,
    K: tl.constexpr,
):  # fmt: skip
    """One row's integers, which sort by size, and by falling latent where sizes are equal."""
    row, slot = tl.program_id(0).to(tl.int64), tl.arange(0, K)
    there = slot < own
    value = tl.load(values + row * own + slot, mask=there, other=0.0).to(tl.float32)
    bits = tl.abs(value).to(tl.int32, bitcast=True)
    if HALF:
        bits = bits >> 16
    latent = tl.load(indices + row * own + slot, mask=there, other=0).to(tl.int64) * size + rank
    key = (bits.to(tl.int64) << LATENT) + ((tl.full([], 1, tl.int64) << LATENT) - 1 - latent)
    tl.store(keys + row * k + slot, tl.where(there, key, -1), mask=slot < k)


@triton.jit
@no_type_check
def _limit_kernel(
    every, keys, budgets, limits, counts, batch, world, k, BITS: tl.constexpr,
    BUDGETS: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Each budget's limit in one row, and how many of this process's entries the budget adds."""
    row, at, slot = tl.program_id(0).to(tl.int64), tl.arange(0, N), tl.arange(0, K)
    place = (at // k).to(tl.int64) * batch * k + row * k + at % k
    found = tl.load(every + place, mask=at < world * k, other=-1)
    own = tl.load(keys + row * k + slot, mask=slot < k, other=-1)
    before = tl.zeros([], tl.int32)
    for budget in range(BUDGETS):
        wanted = tl.load(budgets + budget)
        limit = tl.zeros([], keys.dtype.element_ty)
        for done in range(BITS):
            higher = limit + (tl.full([], 1, keys.dtype.element_ty) << (BITS - 1 - done))
            limit = tl.where(tl.sum((found >= higher).to(tl.int32)) >= wanted, higher, limit)
        reach = tl.sum((own >= limit).to(tl.int32))
        tl.store(limits + row * BUDGETS + budget, limit)
        tl.store(counts + row * BUDGETS + budget, reach - before)
        before = reach


@triton.jit
@no_type_check
def _keep_kernel(
    values, indices, keys, limits, starts, to_values, to_indices, to_rows, before, own, k,
    BUDGETS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Write one row's kept entries; `before` are the budgets of the rows before these."""
    row, slot = tl.program_id(0).to(tl.int64), tl.arange(0, K)
    there = slot < own
    key = tl.load(keys + row * k + slot, mask=there, other=-1)
    value = tl.load(values + row * own + slot, mask=there, other=0.0).to(tl.float32)
    index = tl.load(indices + row * own + slot, mask=there, other=0)
    left = there
    for budget in range(BUDGETS):
        group = row * BUDGETS + budget
        kept = left & (key >= tl.load(limits + group))
        to = tl.load(starts + group) + tl.cumsum(kept.to(tl.int32)) - 1
        tl.store(to_values + to, value, mask=kept)
        tl.store(to_indices + to, index, mask=kept)
        tl.store(to_rows + to, tl.zeros_like(index) + (before + group).to(tl.int32), mask=kept)
        left = left & (key < tl.load(limits + group))


@dataclass(frozen=True)
class SharedRows:
    """The selection's memory.

    Attributes:
        budgets: `[budget]`, entries that each selects of a row, rising.
        keys: `[batch k]`, this process's integers, k of the last budget; -1 where it has no entry.
        limits: `[batch budget]`, the least integer that each budget selects.
        counts: the same for the numbers of entries of this process that each adds.
    """

    exchange: LatentExchange
    budgets: Int[Tensor, " budget"]
    keys: Int[Tensor, "batch k"]
    limits: Int[Tensor, "batch budget"]
    counts: Int[Tensor, " batch_budget"]
    half: bool

    @classmethod
    def empty(
        cls, x: Float[Tensor, "batch d"], budgets: Sequence[int], exchange: LatentExchange
    ) -> "SharedRows":
        """Memory for the rows x, whose dtype is that of the entries."""
        shard = _shard(exchange)
        half = x.dtype == torch.bfloat16
        small = key_bits(shard, half=half) < WIDE  # Then 32 bits hold the sign too.
        keys = x.new_empty(len(x), budgets[-1], dtype=torch.int32 if small else torch.int64)
        limits = keys.new_empty(len(x), len(budgets))
        counts = x.new_empty(limits.numel(), dtype=torch.int32)
        return cls(exchange, counts.new_tensor(budgets), keys, limits, counts, half)

    def tell(
        self, values: Float[Tensor, "row own"], indices: Int[Tensor, "row own"], first: int
    ) -> Told:
        """Begin to tell the others these rows' largest entries of this process.

        Args:
            values: the entries; their magnitudes are compared.
            indices: their latents, as this process numbers them.
            first: the number of the first of these rows.
        """
        shard, (rows, own) = _shard(self.exchange), values.shape
        keys, k = self.keys[first : first + rows], self.keys.shape[1]
        _key_kernel[(rows,)](
            values, indices, keys, own, k, shard.rank, shard.size,
            LATENT=(shard.d_sae - 1).bit_length(), HALF=self.half, K=power_of_two(k), num_warps=1,
        )  # fmt: skip
        return Told(values, indices, first, self.exchange.begin_gather(keys))

    def keep(self, told: Told, out: RowPlace) -> None:
        """Write to `out` those of the rows' entries that are among the largest of all processes.

        Rows are kept in the order in which they were told.
        """
        (rows, own), k, shard = told.values.shape, self.keys.shape[1], _shard(self.exchange)
        budgets, n, last = len(self.budgets), power_of_two(k * shard.size), told.first + rows
        keys, limits = self.keys[told.first : last], self.limits[told.first : last]
        before, end = told.first * budgets, last * budgets
        counts, starts = self.counts[before:end], out.starts[before : end + 1]
        self.exchange.end_first()
        _limit_kernel[(rows,)](
            told.every, keys, self.budgets, limits, counts, rows, shard.size, k,
            BITS=key_bits(shard, half=self.half), BUDGETS=budgets, N=n, K=power_of_two(k),
            num_warps=min(8, max(1, n // MOST_AT_ONCE)),
        )  # fmt: skip
        torch.cumsum(counts, 0, dtype=torch.int32, out=starts[1:])
        if before:
            starts[1:] += starts[0]
        _keep_kernel[(rows,)](
            told.values, told.indices, keys, limits, starts, *out[:3], before, own, k,
            BUDGETS=budgets, K=power_of_two(k), num_warps=1,
        )  # fmt: skip


def _shard(exchange: LatentExchange) -> LatentShard:
    assert exchange.shard is not None
    return exchange.shard

# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""Exact selection of each latent's largest entries over a batch, with one read of all of it.

The columns' budgets differ: the latent of rank r keeps the `counts[r]` rows in which it is largest.
The argument is that of `rows`: columns are cut into segments, and the n segments with the largest
maxima hold a column's n largest entries. These segments are read once more. A column whose budget
reaches the number of its segments is read whole.

Budgets are known on the host, and only which latent has which rank is not. So columns of similar
budgets are one launch, and no launch depends on the data. The entries are written by latent, and
then sorted by row.
"""

from itertools import groupby
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.sizes import ceil_div, power_of_two
from saelab.kernels.torch.zipf import ColumnBudgets
from saelab.kernels.triton.select.batch import FlatCodes, FlatPlace
from saelab.kernels.triton.select.rows import order_key, read, write_best

W = 32
"""Rows in a segment."""
SEGMENTS, COLUMNS = 8, 32
"""Segments and columns that a program reads together."""
LEVELS = (8, 32, 256)
"""Largest budgets of the columns that are one launch; few launches, since each waits for memory."""
ENTRIES = 8192
"""Most entries of a column that are in registers at a time."""


@triton.jit
@no_type_check
def _maxima_kernel(
    pre_acts, maxima, batch, m, n, W: tl.constexpr, SEGMENTS: tl.constexpr, COLUMNS: tl.constexpr
):
    """The largest entries of SEGMENTS segments of W rows in each of COLUMNS columns."""
    blocks = tl.cdiv(n, SEGMENTS)
    segment = ((tl.program_id(0) % blocks) * SEGMENTS + tl.arange(0, SEGMENTS)).to(tl.int64)
    column = (tl.program_id(0) // blocks) * COLUMNS + tl.arange(0, COLUMNS)
    row = segment[:, None] * W + tl.arange(0, W)[None, :]
    valid = (row < batch)[:, :, None] & (column < m)[None, None, :]
    at = row[:, :, None] * m + column[None, None, :]
    tile = tl.load(pre_acts + at, mask=valid, other=float("-inf"))
    # A column's maxima are neighbours, since they are read together.
    to = column.to(tl.int64)[None, :] * n + segment[:, None]
    there = (segment < n)[:, None] & (column < m)[None, :]
    tl.store(maxima + to, tl.max(tile, 1), mask=there)


@triton.jit
@no_type_check
def _short_kernel(
    pre_acts, maxima, ranked, counts, starts, scratch, rows, first, batch, m, n, K: tl.constexpr,
    N: tl.constexpr, W: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """The rows of a column with a budget of at most K and at most its number of segments."""
    rank = first + tl.program_id(0)
    latent = tl.load(ranked + rank)
    budget = tl.load(counts + rank)
    to = tl.load(starts + latent)
    segment = tl.arange(0, N)
    best = tl.load(maxima + latent * n + segment, mask=segment < n, other=0.0).to(tl.float32)
    write_best(order_key(best, segment < n), segment, scratch + to, budget, BITS)
    entry = tl.arange(0, K * W)
    there = entry < budget * W
    row = tl.load(scratch + to + entry // W, mask=there, other=0) * W + entry % W
    valid = there & (row < batch)
    values = read(pre_acts + latent, row.to(tl.int64) * m, valid, MAGNITUDE=False)
    write_best(order_key(values, valid), row, rows + to, budget, BITS)


@triton.jit
@no_type_check
def _keys(column, at, batch, m):
    valid = at < batch
    return order_key(read(column, at.to(tl.int64) * m, valid, MAGNITUDE=False), valid)


@triton.jit
@no_type_check
def _long_kernel(
    pre_acts, ranked, counts, starts, rows, first, batch, m, CHUNK: tl.constexpr,
    BITS: tl.constexpr,
):  # fmt: skip
    """The rows of a column with any budget; a column of one chunk is read once."""
    rank = first + tl.program_id(0)
    latent = tl.load(ranked + rank)
    budget = tl.load(counts + rank)
    to = rows + tl.load(starts + latent)
    column = pre_acts + latent
    at = tl.arange(0, CHUNK)
    # The lower half of a bfloat16's key is all ones if the number is negative.
    digits = -1 if BITS == 32 else -0x10000
    first_keys = _keys(column, at, batch, m) & digits
    limit = tl.full([], -0x80000000, tl.int32)
    for done in range(BITS):
        higher = limit + (tl.full([], 1, tl.int32) << (31 - done))
        count = tl.sum((first_keys >= higher).to(tl.int32))
        later = CHUNK
        while later < batch:
            keys = _keys(column, later + at, batch, m) & digits
            count += tl.sum((keys >= higher).to(tl.int32))
            later += CHUNK
        limit = tl.where(count >= budget, higher, limit)
    missing = budget - tl.sum((first_keys > limit).to(tl.int32))
    later = CHUNK
    while later < batch:
        keys = _keys(column, later + at, batch, m) & digits
        missing -= tl.sum((keys > limit).to(tl.int32))
        later += CHUNK
    later = 0
    while later < batch:
        keys = _keys(column, later + at, batch, m) & digits
        same = ((keys == limit) & (later + at < batch)).to(tl.int32)
        chosen = (keys > limit) | ((same == 1) & (tl.cumsum(same) <= missing))
        ones = chosen.to(tl.int32)
        tl.store(to + tl.cumsum(ones) - 1, later + at, mask=chosen)
        to += tl.sum(ones)
        missing -= tl.sum(same)
        later += CHUNK


def select_column_top_k(
    pre_acts: Float[Tensor, "batch d_sae"],
    ranked: Int[Tensor, " d_sae"],
    budgets: ColumnBudgets,
    *,
    counts: Int[Tensor, " d_sae"] | None = None,
    out: FlatPlace | None = None,
) -> FlatCodes:
    """Each latent's largest stored entries over the batch, in float32, rectified; sorted by row.

    Of equal entries of a column, those of the first rows are kept. The batch may hold anything
    except NaN.

    Args:
        pre_acts: contiguous, of any number of entries.
        ranked: the latents by rank.
        budgets: the number of rows by rank, at most the batch.
        counts: `budgets.counts` on the device of `pre_acts`, as a CUDA graph needs it.
        out: memory for all entries; one group of latents.
    """
    batch, m = pre_acts.shape
    counts = budgets.counts.to(pre_acts.device) if counts is None else counts
    n_entries = int(budgets.counts.sum())
    out = FlatPlace.empty(n_entries, pre_acts.device) if out is None else out
    by_latent = torch.zeros_like(counts).scatter_(0, ranked, counts)
    ends = by_latent.cumsum(0)
    rows = _choose_rows(pre_acts, ranked, budgets, counts, ends - by_latent, n_entries)
    latents = torch.searchsorted(ends, torch.arange(n_entries, device=ends.device), right=True)
    # A radix sort's time grows with the bits of its keys, and few batches need more than 16.
    shift, narrow = (2**15, torch.int16) if batch <= 2**16 else (0, torch.int32)
    keys, order = torch.sort((rows - shift).to(narrow), stable=True)
    out.rows.copy_(keys.int() + shift)
    out.indices.copy_(latents[order])
    place = out.rows.long() * m + out.indices
    out.values.copy_(pre_acts.flatten()[place].float().relu())
    wanted = torch.arange(batch, dtype=torch.int32, device=rows.device)
    return FlatCodes(out.values, out.indices, torch.searchsorted(out.rows, wanted))


def _level(budget: int, n_segments: int) -> int:
    """The level of a budget; 0 if the column is to be read whole."""
    level = next((level for level in LEVELS if budget <= level), 0)
    return level if budget <= n_segments and level * W <= ENTRIES else 0


def _choose_rows(
    pre_acts: Float[Tensor, "batch d_sae"],
    ranked: Int[Tensor, " d_sae"],
    budgets: ColumnBudgets,
    counts: Int[Tensor, " d_sae"],
    starts: Int[Tensor, " d_sae"],
    n_entries: int,
) -> Int[Tensor, " entry"]:
    """The chosen rows of each latent in order, latent by latent."""
    (batch, m), bits = pre_acts.shape, 16 if pre_acts.dtype == torch.bfloat16 else 32
    n = ceil_div(batch, W)
    maxima = pre_acts.new_empty(m, n)
    _maxima_kernel[(ceil_div(n, SEGMENTS) * ceil_div(m, COLUMNS),)](
        pre_acts, maxima, batch, m, n, W=W, SEGMENTS=SEGMENTS, COLUMNS=COLUMNS
    )
    rows, scratch = (counts.new_empty(n_entries, dtype=torch.int32) for _ in range(2))
    first = 0
    for K, alike in groupby(budgets.classes, lambda c: _level(c[2], n)):
        *_, (_, stop, _) = alike
        if K:
            _short_kernel[(stop - first,)](
                pre_acts, maxima, ranked, counts, starts, scratch, rows, first, batch, m, n, K=K,
                N=max(2, power_of_two(n)), W=W, BITS=bits, num_warps=max(1, K * W // 1024),
            )  # fmt: skip
        else:
            chunk = min(ENTRIES, max(16, power_of_two(batch)))
            _long_kernel[(stop - first,)](
                pre_acts, ranked, counts, starts, rows, first, batch, m, CHUNK=chunk, BITS=bits,
                num_warps=max(1, chunk // 1024),
            )  # fmt: skip
        first = stop
    return rows

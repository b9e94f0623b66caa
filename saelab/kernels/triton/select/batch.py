# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""Exact selection of the n largest entries of a whole batch, with one read of all of it.

Rows are cut into segments, and the n segments with the largest maxima hold the n largest entries:
see `batch_list`. These segments are read once more, and the few entries that reach the n-th of
their maxima are listed. The n-th largest listed entry is found digit by digit from integer counts,
which do not depend on the order in which programs run. With fewer than n segments nothing is
listed, and all entries are counted. The launches never depend on the data, and nothing waits for
the device.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int, UInt16
from torch import Tensor

from saelab.config import UsageError
from saelab.kernels.exchange import ALONE, LatentExchange, fewest_segments
from saelab.kernels.sizes import ceil_div, fits_batch_select, power_of_two
from saelab.kernels.triton.select.batch_list import list_entries_kernel
from saelab.kernels.triton.select.digits import (
    count_digits_kernel,
    count_rows_kernel,
    listed_counts,
    next_numbers,
    share_of_rows,
)
from saelab.kernels.triton.select.rows import Maxima, segment_maxima
from saelab.kernels.triton.select.shared import keep_own_ties_

ROWS = 32
"""Rows per program in most kernels."""
COLUMNS = 64
"""Listed entries of a row that are read at a time."""
TILE = 2048
"""Maxima that are counted at a time."""
READ = 1024
"""Entries of listed segments that are read at a time."""


@triton.jit
@no_type_check
def _write_kernel(
    pre_acts, positions, starts, found, state, counted, totals, offsets, values, indices, rows,
    lows, batch, blocks, m, ROWS: tl.constexpr, COLUMNS: tl.constexpr, MAGNITUDE: tl.constexpr,
    BITS: tl.constexpr, GROUPS: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """Write the rows' selected entries by position; of those equal to the limit, the first."""
    block = tl.program_id(0)
    row = block * ROWS + tl.arange(0, ROWS)
    limit = tl.load(state)
    slot, left = share_of_rows(counted, totals, state, block, blocks, batch, ROWS)
    tl.store(offsets + row, slot.to(tl.int64), mask=row < batch)
    count, most = listed_counts(found, row, batch, m, LISTED)
    done = tl.full([], 0, tl.int32)
    while done < most:
        at, there, key = next_numbers(
            pre_acts, positions, starts, count, done, row, batch, m, COLUMNS, MAGNITUDE, BITS,
            LISTED,
        )  # fmt: skip
        same = (there & (key == limit)).to(tl.int32)
        chosen = (there & (key > limit)) | ((same == 1) & (tl.cumsum(same, 1) <= left[:, None]))
        first = pre_acts + row.to(tl.int64)[:, None] * m
        value = tl.load(first + at, mask=chosen, other=0.0).to(tl.float32)
        if not MAGNITUDE:
            value = tl.where(value > 0, value, 0.0)
        ones = chosen.to(tl.int32)
        to = slot[:, None] + tl.cumsum(ones, 1) - 1
        tl.store(values + to, value, mask=chosen)
        tl.store(indices + to, at, mask=chosen)
        group = tl.zeros_like(at) + row[:, None] * GROUPS
        for later in range(1, GROUPS):
            group += (at >= tl.load(lows + later)).to(tl.int32)
        tl.store(rows + to, group, mask=chosen)
        slot += tl.sum(ones, 1)
        left -= tl.sum(same, 1)
        done += COLUMNS


class FlatPlace(NamedTuple):
    """Where selected entries are written, row after row.

    Attributes:
        values: values of the entries.
        indices: latents of the entries.
        rows: the number of each entry's group, counted over all rows.
        lows: the first latent of each group of latents.
    """

    values: Float[Tensor, " entry"]
    indices: Int[Tensor, " entry"]
    rows: Int[Tensor, " entry"]
    lows: Int[Tensor, " group"]

    @classmethod
    def empty(cls, n: int, device: torch.device) -> "FlatPlace":
        """Memory for n entries of one group of latents."""
        values = torch.empty(n, dtype=torch.float32, device=device)
        indices, rows = (torch.empty_like(values, dtype=torch.int32) for _ in range(2))
        return cls(values, indices, rows, indices.new_zeros(1))


class FlatCodes(NamedTuple):
    """Selected entries, row after row, and the start of each row (int64)."""

    values: Float[Tensor, " entry"]
    indices: Int[Tensor, " entry"]
    offsets: Int[Tensor, " batch"]


class _Listed(NamedTuple):
    """The entries that may be among the n largest: positions, stored from each row's start."""

    positions: Int[Tensor, " room"] | UInt16[Tensor, " room"]
    starts: Int[Tensor, " batch"]
    found: Int[Tensor, " batch"]


class _Ranked(NamedTuple):
    """The n-th largest key, how many equal keys are selected, and each row's share of the n."""

    state: Int[Tensor, " 2"]
    rows: Int[Tensor, "2 batch"]
    totals: Int[Tensor, "2 block"]


def _rank(
    table: Float[Tensor, "batch width"],
    listed: _Listed | None,
    n: int,
    counts: Int[Tensor, "round 256"],
    exchange: LatentExchange,
    *,
    by_magnitude: bool,
) -> _Ranked:
    """Find the n-th largest number of all processes' tables, or of their listed numbers.

    Args:
        table: the numbers.
        listed: the numbers that take part; None for all.
        n: the rank.
        counts: zeros, one table per digit of a key.
        exchange: reaches the other processes.
        by_magnitude: rank by |x|.
    """
    batch, width = table.shape
    bits = _key_bits(table)
    shape = {"MAGNITUDE": by_magnitude, "BITS": bits, "LISTED": listed is not None}
    # Numbers that are not listed are not read.
    numbers = (table, *(listed or (counts, counts, counts)))
    columns = COLUMNS if listed else min(256, max(16, power_of_two(width)))
    rows = TILE // columns
    for round_ in range(len(counts)):
        count_digits_kernel[(ceil_div(batch, rows),)](
            *numbers, counts, n, batch, width, ROUND=round_, ROWS=rows, COLUMNS=columns, **shape
        )
        exchange.across(exchange.sum(counts[round_]))
    blocks = ceil_div(batch, ROWS)
    ranked = _Ranked(*(counts.new_empty(size) for size in ((2,), (2, batch), (2, blocks))))
    count_rows_kernel[(blocks,)](
        *numbers, counts, *ranked, n, batch, width,
        ROUNDS=len(counts), ROWS=ROWS, COLUMNS=min(columns, 128), **shape,
    )  # fmt: skip
    return ranked


def _key_bits(table: Float[Tensor, "batch width"]) -> int:
    """Number of bits that distinguish keys."""
    return 16 if table.dtype == torch.bfloat16 else 32


def _list_entries(
    pre_acts: Float[Tensor, "batch d_sae"],
    maxima: Float[Tensor, "batch segment"],
    segments: _Ranked,
    n: int,
    W: int,
    *,
    by_magnitude: bool,
) -> _Listed:
    """The entries of the n first segments that reach the last one's maximum."""
    batch, m = pre_acts.shape
    n_segments = maxima.shape[1]
    n = min(n, maxima.numel())  # Others may have more of the segments.
    scratch = segments.state.new_empty(n)
    # Two bytes are enough for the positions in most dictionaries.
    narrow = torch.uint16 if m <= 2**16 else torch.int32
    found = scratch.new_empty(batch)
    listed = _Listed(
        scratch.new_empty(n * W, dtype=narrow), scratch.new_empty(batch, dtype=torch.int64), found
    )
    list_entries_kernel[(batch,)](
        pre_acts, maxima, *segments, scratch, *listed, batch, ceil_div(batch, ROWS), m, n_segments,
        W=W, SEGMENTS=READ // W, N=min(512, power_of_two(n_segments)), ROWS=ROWS,
        MAGNITUDE=by_magnitude, BITS=_key_bits(pre_acts), num_warps=1,
    )  # fmt: skip
    return listed


def check_batch_select(batch: int, m: int, n: int) -> None:
    """Refuse to select n of `batch` rows of m entries if that would count beyond 2^31.

    Raises:
        UsageError: gives the sizes.
    """
    if not fits_batch_select(batch, m, n):
        raise UsageError(
            f"Selecting {n} of {batch} x {m} pre-activations counts beyond 2^31; lower the batch "
            "size or k."
        )


def select_batch_top_k(
    pre_acts: Float[Tensor, "batch d_sae"],
    n: int,
    *,
    by_magnitude: bool = False,
    maxima: Maxima | None = None,
    out: FlatPlace | None = None,
    exchange: LatentExchange = ALONE,
) -> FlatCodes:
    """The n largest stored entries of the whole batch, in float32, rectified.

    Of equal entries, those of the first rows are kept, and within a row those of lowest index. The
    batch may hold anything except NaN.

    Args:
        pre_acts: contiguous, of any number of entries.
        n: from 1 to their number; see `fits_batch_select`.
        by_magnitude: rank by |x|; values keep their signs.
        maxima: the result of `segment_maxima`, if already computed.
        out: memory for n entries, or for all that this process can have of them.
        exchange: reaches the processes whose latents' and rows' entries are ranked too. Each gets
            its own of the n largest of all; what lies behind them in `out` is not changed.

    Raises:
        UsageError: the selection would count beyond 2^31.
    """
    batch, m = pre_acts.shape
    shard = exchange.shard
    check_batch_select(batch * exchange.replicas.count, m if shard is None else shard.d_sae, n)
    out = FlatPlace.empty(n, pre_acts.device) if out is None else out
    best, W = maxima or segment_maxima(pre_acts, by_magnitude=by_magnitude)
    counts = out.indices.new_zeros(2, _key_bits(pre_acts) // 8, 256)
    listed = None
    if n <= (best.numel() if shard is None else fewest_segments(shard, batch)):
        largest = _rank(best, None, n, counts[0], exchange, by_magnitude=False)
        listed = _list_entries(pre_acts, best, largest, n, W, by_magnitude=by_magnitude)
    entries = _rank(pre_acts, listed, n, counts[1], exchange, by_magnitude=by_magnitude)
    keep_own_ties_(pre_acts, entries, exchange, by_magnitude=by_magnitude, block=ROWS)
    offsets = counts.new_empty(batch, dtype=torch.int64)
    blocks = ceil_div(batch, ROWS)
    _write_kernel[(blocks,)](
        pre_acts, *(listed or (counts, counts, counts)), *entries, offsets, *out, batch, blocks, m,
        ROWS=ROWS, COLUMNS=COLUMNS, MAGNITUDE=by_magnitude, BITS=_key_bits(pre_acts),
        GROUPS=len(out.lows), LISTED=listed is not None,
    )  # fmt: skip
    return FlatCodes(out.values, out.indices, offsets)

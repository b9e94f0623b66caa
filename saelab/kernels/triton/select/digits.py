# ruff: noqa: ANN001, ANN201, PLR0913 - Triton kernels take pointers, which have no Python type.
"""The n-th largest of very many numbers, digit by digit, from counts that are exact in any order.

The numbers are a table's rows: whole rows, or the columns listed for each row.
"""

from typing import no_type_check

import triton
import triton.language as tl

from saelab.kernels.triton.select.rows import order_key, read


@triton.jit
@no_type_check
def order_bits(values, valid, BITS: tl.constexpr):
    """Integers that sort like the values; for bfloat16 the upper half is sufficient."""
    key = order_key(values, valid)
    return key >> (32 - BITS)


@triton.jit
@no_type_check
def listed_counts(found, row, batch, width, LISTED: tl.constexpr):
    """The number of numbers in each row, and the maximum; a whole row has `width`."""
    if LISTED:
        count = tl.load(found + row, mask=row < batch, other=0)
        most = tl.max(count, 0)
    else:
        count = tl.where(row < batch, width, 0)
        most = tl.zeros([], tl.int32) + width
    return count, most


@triton.jit
@no_type_check
def next_numbers(
    values, positions, starts, count, done, row, batch, width, COLUMNS: tl.constexpr,
    MAGNITUDE: tl.constexpr, BITS: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """Columns and keys of the next numbers of some rows, and which of them exist."""
    column = done + tl.arange(0, COLUMNS)[None, :]
    if LISTED:
        there = column < count[:, None]
        start = tl.load(starts + row, mask=row < batch, other=0)
        at = tl.load(positions + start[:, None] + column, mask=there, other=0).to(tl.int32)
    else:
        # Not by the counts: the compiler would not see that neighbours can be read together.
        there = (column < width) & (row < batch)[:, None]
        at = column + tl.zeros_like(row)[:, None]
    first = values + row.to(tl.int64)[:, None] * width
    return at, there, order_bits(read(first, at, there, MAGNITUDE), there, BITS)


@triton.jit
@no_type_check
def leading_digits(counts, n, ROUNDS: tl.constexpr):
    """The first digits of the n-th largest key, and its rank among the keys that share them."""
    digit = tl.arange(0, 256)
    prefix = tl.zeros([], tl.int32)
    rank = tl.zeros([], tl.int32) + n
    for round_ in tl.static_range(ROUNDS):
        count = tl.load(counts + round_ * 256 + digit)
        above = tl.sum(count) - tl.cumsum(count)
        here = (above < rank) & (rank <= above + count)
        found = tl.sum(tl.where(here, digit, 0))
        prefix = found - 128 if round_ == 0 else (prefix << 8) | found
        rank -= tl.sum(tl.where(here, above, 0))
    return prefix, rank


@triton.jit
@no_type_check
def count_digits_kernel(
    values, positions, starts, found, counts, n, batch, width, ROUND: tl.constexpr,
    BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, MAGNITUDE: tl.constexpr,
    LISTED: tl.constexpr,
):  # fmt: skip
    """Count each value of digit ROUND among the keys that share the digits before it."""
    SHIFT: tl.constexpr = BITS - 8 - 8 * ROUND
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    prefix, _rank = leading_digits(counts, n, ROUND)
    count, most = listed_counts(found, row, batch, width, LISTED)
    seen = tl.zeros([512], tl.int32)
    done = tl.full([], 0, tl.int32)
    while done < most:
        _at, there, key = next_numbers(
            values, positions, starts, count, done, row, batch, width, COLUMNS, MAGNITUDE, BITS,
            LISTED,
        )  # fmt: skip
        digit = (key >> SHIFT) + 128
        if ROUND > 0:
            digit = (key >> SHIFT) & 255
            there = there & ((key >> (SHIFT + 8)) == prefix)
        # With a mask the histogram drops entries on a GPU (Triton 3.6).
        digit = tl.where(there, digit, 256)
        seen += tl.histogram(tl.reshape(digit, ROWS * COLUMNS), 512)
        done += COLUMNS
    bin_ = tl.arange(0, 512)
    tl.atomic_add(counts + ROUND * 256 + bin_, seen, mask=(seen > 0) & (bin_ < 256))


@triton.jit
@no_type_check
def count_rows_kernel(
    values, positions, starts, found, counts, state, rows, totals, n, batch, width,
    ROUNDS: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    MAGNITUDE: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """Per row: numbers above the n-th largest, and numbers equal to it; and both over all rows.

    The n-th largest key, and the number of equal keys among the n largest, go to `state`.
    """
    block = tl.program_id(0)
    row = block * ROWS + tl.arange(0, ROWS)
    limit, rank = leading_digits(counts, n, ROUNDS)
    tl.store(state, limit, mask=block == 0)
    tl.store(state + 1, rank, mask=block == 0)
    count, most = listed_counts(found, row, batch, width, LISTED)
    above, same = tl.zeros([ROWS], tl.int32), tl.zeros([ROWS], tl.int32)
    done = tl.full([], 0, tl.int32)
    while done < most:
        _at, there, key = next_numbers(
            values, positions, starts, count, done, row, batch, width, COLUMNS, MAGNITUDE, BITS,
            LISTED,
        )  # fmt: skip
        above += tl.sum((there & (key > limit)).to(tl.int32), 1)
        same += tl.sum((there & (key == limit)).to(tl.int32), 1)
        done += COLUMNS
    tl.store(rows + row, above, mask=row < batch)
    tl.store(rows + batch + row, same, mask=row < batch)
    tl.store(totals + block, tl.sum(above))
    tl.store(totals + tl.num_programs(0) + block, tl.sum(same))


@triton.jit
@no_type_check
def share_of_rows(rows, totals, state, block, blocks, batch, ROWS: tl.constexpr):
    """For each row of a block: its start among the n largest, and its number of ties with the n-th.

    The n largest are in order of rows. Of the numbers equal to the n-th, those of the first rows
    are selected.
    """
    above_before, same_before = tl.zeros([256], tl.int32), tl.zeros([256], tl.int32)
    done = tl.full([], 0, tl.int32)
    while done < block:
        other = done + tl.arange(0, 256)
        above_before += tl.load(totals + other, mask=other < block, other=0)
        same_before += tl.load(totals + blocks + other, mask=other < block, other=0)
        done += 256
    row = block * ROWS + tl.arange(0, ROWS)
    above = tl.load(rows + row, mask=row < batch, other=0)
    same = tl.load(rows + batch + row, mask=row < batch, other=0)
    same_first = tl.sum(same_before) + tl.cumsum(same) - same
    left = tl.load(state + 1)
    start = tl.sum(above_before) + tl.cumsum(above) - above + tl.minimum(same_first, left)
    return start, tl.minimum(same, tl.maximum(left - same_first, 0))

# ruff: noqa: ANN001, ANN201, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""The entries of a batch that can be among its n largest, from the maxima of its segments.

Proof: rank segments by (largest entry, then order of rows and positions). Take an entry whose
segment is not among the first n. Each of the first n segments has an entry that is larger, or equal
and earlier, so n entries come before it under the tie rule. Hence the first n segments contain the
n largest entries. Each of these segments has an entry that is at least the n-th segment's maximum,
so no smaller entry is among the n largest.

The list ends at n segments, however many share the last maximum. This limits the memory: a listed
segment has room for all its entries. Each row stores its kept entries at the front of its room.
"""

from typing import no_type_check

import triton
import triton.language as tl

from saelab.kernels.triton.select.digits import order_bits, share_of_rows
from saelab.kernels.triton.select.rows import read


@triton.jit
@no_type_check
def _list_segments(
    maxima, n_segments, limit, quota, listed, N: tl.constexpr, BITS: tl.constexpr
):  # fmt: skip
    """Write a row's segments above the limit and the first `quota` equal to it; return how many."""
    total, done = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    while done < n_segments:
        segment = done + tl.arange(0, N)
        valid = segment < n_segments
        best = tl.load(maxima + segment, mask=valid, other=0.0).to(tl.float32)
        key = order_bits(best, valid, BITS)
        same = (valid & (key == limit)).to(tl.int32)
        chosen = (valid & (key > limit)) | ((same == 1) & (tl.cumsum(same) <= quota))
        ones = chosen.to(tl.int32)
        tl.store(listed + total + tl.cumsum(ones) - 1, segment, mask=chosen)
        total += tl.sum(ones)
        quota -= tl.sum(same)
        done += N
    tl.debug_barrier()
    return total


@triton.jit
@no_type_check
def list_entries_kernel(
    pre_acts, maxima, state, rows, totals, listed, positions, starts, found, batch, blocks, m,
    n_segments, W: tl.constexpr, SEGMENTS: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr,
    MAGNITUDE: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """The positions of a row's entries that may be among the n largest, in order."""
    token = tl.program_id(0)
    block = token // ROWS
    start, quota = share_of_rows(rows, totals, state, block, blocks, batch, ROWS)
    own = tl.arange(0, ROWS) == token % ROWS
    start, quota = tl.sum(tl.where(own, start, 0)), tl.sum(tl.where(own, quota, 0))
    limit = tl.load(state)
    listed += start
    row = token.to(tl.int64)
    total = _list_segments(maxima + row * n_segments, n_segments, limit, quota, listed, N, BITS)
    room = start.to(tl.int64) * W
    kept, done = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    while done < total:
        item = done + tl.arange(0, SEGMENTS)
        there = item < total
        segment = tl.load(listed + item, mask=there, other=0)
        at = segment[:, None] * W + tl.arange(0, W)[None, :]
        valid = there[:, None] & (at < m)
        key = order_bits(read(pre_acts + row * m, at, valid, MAGNITUDE), valid, BITS)
        keep = valid & (key >= limit)
        ones = keep.to(tl.int32)
        n_kept = tl.sum(ones, 1)
        slot = kept + (tl.cumsum(n_kept) - n_kept)[:, None] + tl.cumsum(ones, 1) - 1
        tl.store(positions + room + slot, at.to(positions.dtype.element_ty), mask=keep)
        kept += tl.sum(n_kept)
        done += SEGMENTS
    tl.store(starts + token, room)
    tl.store(found + token, kept)

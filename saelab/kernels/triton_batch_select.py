# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
# pyright: reportMissingParameterType=false, reportCallIssue=false
"""Exact selection of the n largest entries of a whole batch, with one read of all of it.

Rows are cut into segments. If n segments have a largest entry of at least t, the n-th largest entry
is at least t too; so only segments whose largest entry reaches the n-th largest of these need be
looked at again. Among their entries the n-th largest is found digit by digit, from integer counts,
which do not depend on the order in which programs run. The launches never depend on the data, and
nothing waits for the device.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.sizes import ceil_div, power_of_two
from saelab.kernels.triton_digits import count_kernel, digits, order_bits, pick_kernel, search_state
from saelab.kernels.triton_select import read, segment_maxima

CHUNK = 4096
QUOTA_BLOCK = 4096
SEGMENTS = 16
"""Segments of a row that are read at a time."""


@triton.jit
@no_type_check
def _list_kernel(
    maxima, state, listed, n_listed, n: tl.constexpr, N: tl.constexpr, BITS: tl.constexpr,
    ALL: tl.constexpr,
):  # fmt: skip
    """The segments of a row that must be looked at again, in order."""
    token = tl.program_id(0).to(tl.int64)
    segment = tl.arange(0, N)
    valid = segment < n
    key = order_bits(
        tl.load(maxima + token * n + segment, mask=valid, other=0.0).to(tl.float32), valid, BITS
    )
    wanted = valid & ((key >= tl.load(state)) | ALL)
    slot = tl.cumsum(wanted.to(tl.int32)) - 1
    tl.store(listed + token * n + slot, segment, mask=wanted)
    tl.store(n_listed + token, tl.sum(wanted.to(tl.int32)))


@triton.jit
@no_type_check
def _segment_entries(
    pre_acts, listed, token, done, total, m, n, W: tl.constexpr, SEGMENTS: tl.constexpr,
    MAGNITUDE: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Positions and keys of the entries of a row's next listed segments."""
    item = done + tl.arange(0, SEGMENTS * W) // W
    there = item < total
    segment = tl.load(listed + token * n + item, mask=there, other=0)
    at = segment * W + tl.arange(0, SEGMENTS * W) % W
    valid = there & (at < m)
    return at, valid, order_bits(read(pre_acts + token * m, at, valid, MAGNITUDE), valid, BITS)


@triton.jit
@no_type_check
def _count_listed_kernel(
    pre_acts, listed, n_listed, state, counts, m, n, W: tl.constexpr, SEGMENTS: tl.constexpr,
    MAGNITUDE: tl.constexpr, BITS: tl.constexpr, SHIFT: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """How often each digit occurs among the entries of a row's listed segments."""
    token = tl.program_id(0).to(tl.int64)
    found = tl.zeros([512], tl.int32)
    prefix = tl.load(state)
    total = tl.load(n_listed + token)
    done = tl.full([], 0, tl.int32)
    while done < total:
        _, valid, key = _segment_entries(
            pre_acts, listed, token, done, total, m, n, W, SEGMENTS, MAGNITUDE, BITS
        )
        found += tl.histogram(digits(key, prefix, valid, SHIFT, TOP), 512)
        done += SEGMENTS
    bin_ = tl.arange(0, 512)
    tl.atomic_add(counts + bin_, found, mask=(found > 0) & (bin_ < 256))


@triton.jit
@no_type_check
def _count_row_kernel(
    pre_acts, listed, n_listed, state, greater, equal, m, n, W: tl.constexpr,
    SEGMENTS: tl.constexpr, MAGNITUDE: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """A row's entries above the n-th largest, and those equal to it."""
    token = tl.program_id(0).to(tl.int64)
    limit = tl.load(state)
    total = tl.load(n_listed + token)
    done = tl.full([], 0, tl.int32)
    above, same = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    while done < total:
        _, valid, key = _segment_entries(
            pre_acts, listed, token, done, total, m, n, W, SEGMENTS, MAGNITUDE, BITS
        )
        above += tl.sum((valid & (key > limit)).to(tl.int32))
        same += tl.sum((valid & (key == limit)).to(tl.int32))
        done += SEGMENTS
    tl.store(greater + token, above)
    tl.store(equal + token, same)


@triton.jit
@no_type_check
def _write_kernel(
    pre_acts, listed, n_listed, state, quota, starts, values, indices, rows, lows, m, n,
    W: tl.constexpr, SEGMENTS: tl.constexpr, MAGNITUDE: tl.constexpr, BITS: tl.constexpr,
    GROUPS: tl.constexpr,
):  # fmt: skip
    """A row's chosen entries in order of position; of those equal to the limit its first ones."""
    token = tl.program_id(0).to(tl.int64)
    limit, left, slot = tl.load(state), tl.load(quota + token), tl.load(starts + token)
    total = tl.load(n_listed + token)
    done = tl.full([], 0, tl.int32)
    while done < total:
        at, valid, key = _segment_entries(
            pre_acts, listed, token, done, total, m, n, W, SEGMENTS, MAGNITUDE, BITS
        )
        equal = (valid & (key == limit)).to(tl.int32)
        chosen = (valid & (key > limit)) | ((equal == 1) & (tl.cumsum(equal) <= left))
        value = tl.load(pre_acts + token * m + at, mask=chosen, other=0.0).to(tl.float32)
        if not MAGNITUDE:
            value = tl.where(value > 0, value, 0.0)
        to = slot + tl.cumsum(chosen.to(tl.int32)) - 1
        tl.store(values + to, value, mask=chosen)
        tl.store(indices + to, at, mask=chosen)
        group = tl.zeros_like(at) + (token * GROUPS).to(tl.int32)
        for later in range(1, GROUPS):
            group += (at >= tl.load(lows + later)).to(tl.int32)
        tl.store(rows + to, group, mask=chosen)
        slot += tl.sum(chosen.to(tl.int32))
        left -= tl.sum(equal)
        done += SEGMENTS


@triton.jit
@no_type_check
def _quota_kernel(greater, equal, state, quota, starts, batch, BLOCK: tl.constexpr):
    """How many of a row's entries at the limit are kept, and where its entries start.

    One program does it all: the first rows' entries at the limit go before the others'.
    """
    # What is still wanted of those equal to the limit.
    left = tl.load(state + 1)
    filled = tl.full([], 0, tl.int64)
    first = tl.full([], 0, tl.int32)
    while first < batch:
        row = first + tl.arange(0, BLOCK)
        inside = row < batch
        same = tl.load(equal + row, mask=inside, other=0)
        above = tl.load(greater + row, mask=inside, other=0)
        kept = tl.minimum(same, tl.maximum(left - (tl.cumsum(same) - same), 0))
        n = (above + kept).to(tl.int64)
        tl.store(quota + row, kept, mask=inside)
        tl.store(starts + row, filled + tl.cumsum(n) - n, mask=inside)
        left -= tl.sum(same)
        filled += tl.sum(n)
        first += BLOCK


class FlatPlace(NamedTuple):
    """Where chosen entries are written, row after row.

    Attributes:
        values: of the entries.
        indices: of the entries.
        rows: the number of each entry's group, counted over all rows.
        lows: the first latent of each group of latents; all are one group if there is one.
    """

    values: Float[Tensor, " entry"]
    indices: Int[Tensor, " entry"]
    rows: Int[Tensor, " entry"]
    lows: Int[Tensor, " group"]

    @classmethod
    def empty(cls, n: int, device: torch.device) -> "FlatPlace":
        """Room for n entries of one group of latents."""
        values = torch.empty(n, dtype=torch.float32, device=device)
        indices = values.to(torch.int32)
        return cls(values, indices, indices.clone(), indices.new_zeros(1))


class FlatCodes(NamedTuple):
    """Chosen entries, row after row, and where each row starts (int64)."""

    values: Float[Tensor, " entry"]
    indices: Int[Tensor, " entry"]
    offsets: Int[Tensor, " batch"]


def select_batch_top_k(
    pre_acts: Float[Tensor, "batch d_sae"],
    n: int,
    *,
    by_magnitude: bool = False,
    out: FlatPlace | None = None,
) -> FlatCodes:
    """The n largest entries of the whole batch as they are stored, in float32, rectified.

    Among equal entries those of the first rows, and in a row of the lowest index, are kept. The
    batch may hold anything but NaN.

    Args:
        pre_acts: contiguous, fewer than 2^31 entries.
        n: from 1 to their number.
        by_magnitude: rank by |x|; values keep their signs.
        out: where to write n entries.
    """
    batch, m = pre_acts.shape
    out = FlatPlace.empty(n, pre_acts.device) if out is None else out
    bits = 16 if pre_acts.dtype == torch.bfloat16 else 32
    maxima, W = segment_maxima(pre_acts, by_magnitude=by_magnitude)
    n_segments = maxima.shape[1]
    state, counts = search_state(n, bits, maxima.device)
    all_ = maxima.numel() < n
    if not all_:
        for round_, shift in enumerate(range(bits - 8, -1, -8)):
            count_kernel[(ceil_div(maxima.numel(), CHUNK),)](
                maxima, maxima.numel(), state, counts[round_],
                SHIFT=shift, TOP=round_ == 0, BITS=bits, CHUNK=CHUNK,
            )  # fmt: skip
            pick_kernel[(1,)](counts[round_], state, TOP=round_ == 0)
    listed = state.new_empty(batch, n_segments)
    n_listed, greater, equal = (state.new_empty(batch) for _ in range(3))
    _list_kernel[(batch,)](
        maxima, state, listed, n_listed,
        n=n_segments, N=power_of_two(n_segments), BITS=bits, ALL=all_,
    )  # fmt: skip
    shape = {"W": W, "SEGMENTS": SEGMENTS, "MAGNITUDE": by_magnitude, "BITS": bits}
    state, counts = search_state(n, bits, maxima.device)
    rows = (pre_acts, listed, n_listed, state)
    for round_, shift in enumerate(range(bits - 8, -1, -8)):
        _count_listed_kernel[(batch,)](
            *rows, counts[round_], m, n_segments, SHIFT=shift, TOP=round_ == 0, **shape,
        )  # fmt: skip
        pick_kernel[(1,)](counts[round_], state, TOP=round_ == 0)
    _count_row_kernel[(batch,)](*rows, greater, equal, m, n_segments, **shape)
    quota, offsets = torch.empty_like(equal), equal.new_empty(batch, dtype=torch.int64)
    block = min(QUOTA_BLOCK, max(16, power_of_two(batch)))
    _quota_kernel[(1,)](greater, equal, state, quota, offsets, batch, BLOCK=block, num_warps=8)
    _write_kernel[(batch,)](
        *rows, quota, offsets, *out, m, n_segments, GROUPS=len(out.lows), **shape
    )
    return FlatCodes(out.values, out.indices, offsets)

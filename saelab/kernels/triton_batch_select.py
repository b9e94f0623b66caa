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
from saelab.kernels.triton_select import order_key, read, segment_maxima

CHUNK = 4096
ROWS = 2
"""Rows whose counts a program adds up before it adds them to those of the others."""
SEGMENTS = 16
"""Segments of a row that are read at a time."""


@triton.jit
@no_type_check
def _key(values, valid, BITS: tl.constexpr):
    """Integers that sort as the values do; the upper half says it all for bfloat16."""
    key = order_key(values, valid)
    return key >> (32 - BITS)


@triton.jit
@no_type_check
def _digit(key, prefix, valid, SHIFT: tl.constexpr, TOP: tl.constexpr):
    """The eight bits at SHIFT, upwards from 0; 256 where the bits above are not the prefix."""
    digit = (key >> SHIFT) + 128
    if not TOP:
        digit = (key >> SHIFT) & 255
        valid = valid & ((key >> (SHIFT + 8)) == prefix)
    return tl.where(valid, digit, 256)


@triton.jit
@no_type_check
def _count_kernel(
    values, n, state, counts, SHIFT: tl.constexpr, TOP: tl.constexpr, BITS: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """How often each digit occurs among all values."""
    at = tl.program_id(0).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    valid = at < n
    key = _key(tl.load(values + at, mask=valid, other=0.0).to(tl.float32), valid, BITS)
    found = tl.histogram(_digit(key, tl.load(state), valid, SHIFT, TOP), 512)
    bin_ = tl.arange(0, 512)
    tl.atomic_add(counts + bin_, found, mask=(found > 0) & (bin_ < 256))


@triton.jit
@no_type_check
def _pick_kernel(counts, state, TOP: tl.constexpr):
    """The digit of the wanted entry, and its rank among those that share it so far."""
    digit = tl.arange(0, 256)
    count = tl.load(counts + digit)
    above = tl.sum(count) - tl.cumsum(count)
    prefix, rank = tl.load(state), tl.load(state + 1)
    here = (above < rank) & (rank <= above + count)
    found = tl.sum(tl.where(here, digit, 0))
    tl.store(state, found - 128 if TOP else (prefix << 8) | found)
    tl.store(state + 1, rank - tl.sum(tl.where(here, above, 0)))


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
    key = _key(
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
    return at, valid, _key(read(pre_acts + token * m, at, valid, MAGNITUDE), valid, BITS)


@triton.jit
@no_type_check
def _count_listed_kernel(
    pre_acts, listed, n_listed, state, counts, batch, m, n, W: tl.constexpr,
    SEGMENTS: tl.constexpr, ROWS: tl.constexpr, MAGNITUDE: tl.constexpr, BITS: tl.constexpr,
    SHIFT: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """How often each digit occurs among the entries of the listed segments of ROWS rows."""
    token = tl.program_id(0).to(tl.int64) * ROWS
    end = tl.minimum(token + ROWS, batch)
    found = tl.zeros([512], tl.int32)
    prefix = tl.load(state)
    while token < end:
        total = tl.load(n_listed + token)
        done = tl.full([], 0, tl.int32)
        while done < total:
            _, valid, key = _segment_entries(
                pre_acts, listed, token, done, total, m, n, W, SEGMENTS, MAGNITUDE, BITS
            )
            found += tl.histogram(_digit(key, prefix, valid, SHIFT, TOP), 512)
            done += SEGMENTS
        token += 1
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
    pre_acts, listed, n_listed, state, quota, starts, values, indices, m, n, W: tl.constexpr,
    SEGMENTS: tl.constexpr, MAGNITUDE: tl.constexpr, BITS: tl.constexpr,
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
        slot += tl.sum(chosen.to(tl.int32))
        left -= tl.sum(equal)
        done += SEGMENTS


class FlatCodes(NamedTuple):
    """Chosen entries, row after row, and where each row starts (int64)."""

    values: Float[Tensor, " entry"]
    indices: Int[Tensor, " entry"]
    offsets: Int[Tensor, " batch"]


def select_batch_top_k(
    pre_acts: Float[Tensor, "batch d_sae"], n: int, *, by_magnitude: bool = False
) -> FlatCodes:
    """The n largest entries of the whole batch as they are stored, in float32, rectified.

    Among equal entries those of the first rows, and in a row of the lowest index, are kept. The
    batch may hold anything but NaN.

    Args:
        pre_acts: contiguous, fewer than 2^31 entries.
        n: from 1 to their number.
        by_magnitude: rank by |x|; values keep their signs.
    """
    batch, m = pre_acts.shape
    bits = 16 if pre_acts.dtype == torch.bfloat16 else 32
    maxima, W = segment_maxima(pre_acts, by_magnitude=by_magnitude)
    n_segments = maxima.shape[1]
    state, counts = _start(n, bits, maxima.device)
    all_ = maxima.numel() < n
    if not all_:
        for round_, shift in enumerate(range(bits - 8, -1, -8)):
            _count_kernel[(ceil_div(maxima.numel(), CHUNK),)](
                maxima, maxima.numel(), state, counts[round_],
                SHIFT=shift, TOP=round_ == 0, BITS=bits, CHUNK=CHUNK,
            )  # fmt: skip
            _pick_kernel[(1,)](counts[round_], state, TOP=round_ == 0)
    listed = state.new_empty(batch, n_segments)
    n_listed, greater, equal = (state.new_empty(batch) for _ in range(3))
    _list_kernel[(batch,)](
        maxima, state, listed, n_listed,
        n=n_segments, N=power_of_two(n_segments), BITS=bits, ALL=all_,
    )  # fmt: skip
    shape = {"W": W, "SEGMENTS": SEGMENTS, "MAGNITUDE": by_magnitude, "BITS": bits}
    state, counts = _start(n, bits, maxima.device)
    rows = (pre_acts, listed, n_listed, state)
    for round_, shift in enumerate(range(bits - 8, -1, -8)):
        _count_listed_kernel[(ceil_div(batch, ROWS),)](
            *rows, counts[round_], batch, m, n_segments,
            ROWS=ROWS, SHIFT=shift, TOP=round_ == 0, **shape,
        )  # fmt: skip
        _pick_kernel[(1,)](counts[round_], state, TOP=round_ == 0)
    _count_row_kernel[(batch,)](*rows, greater, equal, m, n_segments, **shape)
    # The state's second number is how many of those equal to the limit are still wanted.
    before = equal.cumsum(0) - equal
    quota = (state[1] - before).clamp_min(0).minimum(equal).int()
    kept = greater + quota
    offsets = kept.cumsum(0) - kept
    values = torch.empty(n, dtype=torch.float32, device=maxima.device)
    indices = state.new_empty(n)
    _write_kernel[(batch,)](*rows, quota, offsets, values, indices, m, n_segments, **shape)
    return FlatCodes(values, indices, offsets)


def _start(
    n: int, bits: int, device: torch.device
) -> tuple[Int[Tensor, " 2"], Int[Tensor, "round 256"]]:
    """Nothing known of the n-th largest yet."""
    state = torch.zeros(2, dtype=torch.int32, device=device)
    state[1:].fill_(n)
    return state, state.new_zeros(bits // 8, 256)

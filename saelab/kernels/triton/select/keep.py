# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
# pyright: reportMissingParameterType=false, reportCallIssue=false
"""Rows that keep their largest entries where they are, for any number of entries."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.sizes import power_of_two
from saelab.kernels.triton.select.rows import order_key, read

CHUNK = 8192
KEYS = 2048
"""Keys of a chunk in the registers of a warp."""


@triton.jit
@no_type_check
def _keys(row, at, valid, BITS: tl.constexpr, SIGNED: tl.constexpr):
    key = order_key(read(row, at, valid, SIGNED), valid)
    if BITS == 16:
        # The lower half of a bfloat16's key is all ones if the number is negative.
        key = key & -0x10000
    return key


@triton.jit
@no_type_check
def _keep_kernel(
    pre_acts,
    n_valid,
    k,
    n: tl.constexpr,
    BITS: tl.constexpr,
    CHUNK: tl.constexpr,
    SIGNED: tl.constexpr,
):
    """Write zeros over all entries except a row's top k of its first `n_valid`.

    The k-th largest key is found bit by bit, by counting the keys that are at least as large. A row
    of one chunk is read once.
    """
    row = pre_acts + tl.program_id(0).to(tl.int64) * n
    valid = tl.load(n_valid)
    wanted = tl.minimum(k, valid)
    limit = tl.full([], -0x80000000, tl.int32)
    at = tl.arange(0, CHUNK)
    first_keys = _keys(row, at, at < valid, BITS, SIGNED)
    for done in range(BITS):
        higher = limit + (tl.full([], 1, tl.int32) << (31 - done))
        count = tl.sum((first_keys >= higher).to(tl.int32))
        for first in range(CHUNK, n, CHUNK):
            count += _count_above(row, first + at, valid, higher - 1, BITS, SIGNED)
        limit = tl.where(count >= wanted, higher, limit)
    missing = wanted - tl.sum((first_keys > limit).to(tl.int32))
    for first in range(CHUNK, n, CHUNK):
        missing -= _count_above(row, first + at, valid, limit, BITS, SIGNED)
    for first in range(0, n, CHUNK):
        place = first + at
        key = _keys(row, place, place < valid, BITS, SIGNED)
        equal = (key == limit) & (place < valid)
        kept = (key > limit) | (equal & (tl.cumsum(equal.to(tl.int32)) <= missing))
        missing -= tl.sum(equal.to(tl.int32))
        value = tl.load(row + place, mask=place < n, other=0.0)
        if not SIGNED:
            kept = kept & (value > 0)
        tl.store(row + place, tl.where(kept & (place < valid), value, 0.0), mask=place < n)


@triton.jit
@no_type_check
def _count_above(row, at, valid, limit, BITS: tl.constexpr, SIGNED: tl.constexpr):
    return tl.sum((_keys(row, at, at < valid, BITS, SIGNED) > limit).to(tl.int32))


def keep_top_k_(
    pre_acts: Float[Tensor, "batch n"],
    n_valid: Int[Tensor, ""],
    k: int,
    *,
    signed: bool,
) -> None:
    """Turn pre-activations into dense codes in place: the top k of each row's first `n_valid`.

    Any k; of equal entries the lowest index. With `signed`, by magnitude with signs, else
    rectified.
    """
    batch, n = pre_acts.shape
    chunk = min(CHUNK, max(16, power_of_two(n)))
    _keep_kernel[(batch,)](
        pre_acts, n_valid, k, n=n, CHUNK=chunk, SIGNED=signed, num_warps=max(1, chunk // KEYS),
        BITS=16 if pre_acts.dtype == torch.bfloat16 else 32,
    )  # fmt: skip

# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""Rows that keep their largest entries where they are, for any number of entries.

What is kept is positive, or ranked by magnitude, so the bits of a number without its sign rank it:
15 bits of a 16-bit number, of which two are compared at a time in 32 bits. The k-th largest key is
between the row's largest and 1. It is found by bisection, which first looks a few powers of two
below the largest. Only then are ties cut at the lowest indices.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.sizes import ceil_div, power_of_two

WORDS = 16384
"""32-bit words that a program holds in registers; it reads the rest of a longer row repeatedly."""
PER_WARP = 1024
"""Words in the registers of a warp."""
OCTAVES = 4
"""Powers of two below the largest key in which the k-th is sought first."""


@triton.jit
@no_type_check
def _words(row, start, n_words, valid, PACKED: tl.constexpr, WORDS: tl.constexpr):
    """WORDS words of a row; entries from `valid` on are zero."""
    at = start + tl.arange(0, WORDS)
    if not PACKED:
        return tl.load(row + at, mask=at < valid, other=0)
    word = tl.load(row + at, mask=(at < n_words) & (2 * at < valid), other=0)
    return tl.where(2 * at + 1 < valid, word, word & 0xFFFF)


@triton.jit
@no_type_check
def _column_words(row, columns, start, valid, PACKED: tl.constexpr, WORDS: tl.constexpr):
    """The words of a row that consists of these columns of another one."""
    at = start + tl.arange(0, WORDS)
    if not PACKED:
        column = tl.load(columns + at, mask=at < valid, other=0)
        return tl.load(row + column, mask=at < valid, other=0)
    column = tl.load(columns + 2 * at, mask=2 * at < valid, other=0)
    lower = tl.load(row + column, mask=2 * at < valid, other=0).to(tl.int32) & 0xFFFF
    column = tl.load(columns + 2 * at + 1, mask=2 * at + 1 < valid, other=0)
    upper = tl.load(row + column, mask=2 * at + 1 < valid, other=0).to(tl.int32)
    return lower | (upper << 16)


@triton.jit
@no_type_check
def _keys(words, PACKED: tl.constexpr, SIGNED: tl.constexpr):
    """Integers >= 0 that rank the entries, 0 for those that would be zero in any case."""
    if PACKED:
        keys = words & 0x7FFF7FFF
        if not SIGNED:
            negative = (words >> 15) & 0x00010001
            keys = keys & ~((negative << 15) - negative)
        return keys
    return words & 0x7FFFFFFF if SIGNED else tl.maximum(words, 0)


@triton.jit
@no_type_check
def _largest(keys, PACKED: tl.constexpr):
    return tl.max(tl.maximum(keys & 0xFFFF, keys >> 16)) if PACKED else tl.max(keys)


@triton.jit
@no_type_check
def _reaches(keys, limit, PACKED: tl.constexpr):
    """1 for each key that is at least `limit`, at the lowest bit of its half of the word."""
    if PACKED:
        # The upper bit is set in each half, and no half borrows from another one.
        return (((keys | -0x7FFF8000) - limit * 0x00010001) >> 15) & 0x00010001
    return (keys >= limit).to(tl.int32)


@triton.jit
@no_type_check
def _total(flags, PACKED: tl.constexpr):
    total = tl.sum(flags)
    return (total & 0xFFFF) + ((total >> 16) & 0xFFFF) if PACKED else total


@triton.jit
@no_type_check
def _count(
    row,
    keys,
    limit,
    n_words,
    valid,
    PACKED: tl.constexpr,
    SIGNED: tl.constexpr,
    WORDS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """The row's keys that are at least `limit`; `keys` are those of its first words."""
    count = _total(_reaches(keys, limit, PACKED), PACKED)
    for chunk in range(1, CHUNKS):
        more = _keys(_words(row, chunk * WORDS, n_words, valid, PACKED, WORDS), PACKED, SIGNED)
        count += _total(_reaches(more, limit, PACKED), PACKED)
    return count


@triton.jit
@no_type_check
def _first_of_equal(keys, limit, missing, PACKED: tl.constexpr):
    """Flags of the keys above `limit` and of the first `missing` equal ones; how many are equal."""
    above = _reaches(keys, limit + 1, PACKED)
    equal = _reaches(keys, limit, PACKED) - above
    here = (equal & 1) + (equal >> 16) if PACKED else equal
    before = tl.cumsum(here) - here
    first = equal & (before < missing).to(tl.int32)
    if PACKED:
        first = first | (equal & ((before + (equal & 1) < missing).to(tl.int32) << 16))
    return above | first, tl.sum(here)


@triton.jit
@no_type_check
def _limit(
    row,
    keys,
    top,
    wanted,
    n_words,
    valid,
    SPAN: tl.constexpr,
    PACKED: tl.constexpr,
    SIGNED: tl.constexpr,
    WORDS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """A limit that all kept keys reach; how many reach it, and how many are above it.

    If more reach it than wanted, it is the smallest key that is kept. `top` is the largest key.
    """
    # n_low keys reach `low`, n_high < wanted reach `high`.
    low = tl.full([], 1, tl.int32)
    high = top + 1
    n_low = _count(row, keys, low, n_words, valid, PACKED, SIGNED, WORDS, CHUNKS)
    n_high = tl.full([], 0, tl.int32)
    span = tl.full([], SPAN, tl.int32)
    while (high - low > 1) & (n_low > wanted):
        middle = tl.maximum(low + (high - low) // 2, high - span)
        n = _count(row, keys, middle, n_words, valid, PACKED, SIGNED, WORDS, CHUNKS)
        enough = n >= wanted
        low = tl.where(enough, middle, low)
        n_low = tl.where(enough, n, n_low)
        high = tl.where(enough, high, middle)
        n_high = tl.where(enough, n_high, n)
        span = tl.where(enough, span, tl.minimum(span, 0x10000000) * 4)
    return low, n_low, n_high


@triton.jit
@no_type_check
def _keep_kernel(
    z,
    source,
    columns,
    n_valid,
    k,
    n_words,
    width,
    SPAN: tl.constexpr,
    PACKED: tl.constexpr,
    SIGNED: tl.constexpr,
    FROM_COLUMNS: tl.constexpr,
    WORDS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Write zeros over all entries except a row's top k of its first `n_valid`.

    With FROM_COLUMNS, the row is first read from these columns of `source`.
    """
    row = z + tl.program_id(0).to(tl.int64) * n_words
    valid = tl.load(n_valid)
    wanted = tl.minimum(k, valid)
    if FROM_COLUMNS:
        source += tl.program_id(0).to(tl.int64) * width
        for chunk in range(1, CHUNKS):
            words = _column_words(source, columns, chunk * WORDS, valid, PACKED, WORDS)
            at = chunk * WORDS + tl.arange(0, WORDS)
            tl.store(row + at, words, mask=at < n_words)
        tl.debug_barrier()
        words = _column_words(source, columns, 0, valid, PACKED, WORDS)
    else:
        words = _words(row, 0, n_words, valid, PACKED, WORDS)
    keys = _keys(words, PACKED, SIGNED)
    top = _largest(keys, PACKED)
    for chunk in range(1, CHUNKS):
        more = _keys(_words(row, chunk * WORDS, n_words, valid, PACKED, WORDS), PACKED, SIGNED)
        top = tl.maximum(top, _largest(more, PACKED))

    low, n_low, n_high = _limit(
        row, keys, top, wanted, n_words, valid, SPAN, PACKED, SIGNED, WORDS, CHUNKS
    )
    missing = wanted - n_high
    for chunk in range(CHUNKS):
        if chunk > 0:
            words = _words(row, chunk * WORDS, n_words, valid, PACKED, WORDS)
            keys = _keys(words, PACKED, SIGNED)
        kept = _reaches(keys, low, PACKED)
        if n_low > wanted:
            kept, n_equal = _first_of_equal(keys, low, missing, PACKED)
            missing -= n_equal
        at = chunk * WORDS + tl.arange(0, WORDS)
        mask = (kept << 16) - kept if PACKED else -kept
        tl.store(row + at, words & mask, mask=at < n_words)


def keep_top_k_(
    z: Float[Tensor, "batch n"],
    n_valid: Int[Tensor, ""],
    k: int,
    *,
    signed: bool,
    columns: tuple[Float[Tensor, "batch d_sae"], Int[Tensor, " column"]] | None = None,
) -> None:
    """Turn pre-activations into dense codes in place: the top k of each row's first `n_valid`.

    Any k; of equal entries the lowest index. With `signed`, by magnitude with signs, else
    rectified. Rows may hold anything except NaN.

    Args:
        z: contiguous; n is even if its numbers have 16 bits.
        n_valid: at most n.
        k: entries to keep.
        signed: see above.
        columns: a matrix, and which of its columns are the pre-activations; z is then only written.
    """
    batch, n = z.shape
    packed = z.element_size() == 2
    assert n % 2 == 0 or not packed
    n_words = n // 2 if packed else n
    words = min(WORDS, max(16, power_of_two(n_words)))
    if columns is None:
        columns = z, n_valid
    source, places = columns
    octave = round(1 / torch.finfo(z.dtype).eps)
    if batch and n:
        _keep_kernel[(batch,)](
            z.view(torch.int32), source.view(torch.int16 if packed else torch.int32), places,
            n_valid, k, n_words, source.shape[1], SPAN=OCTAVES * octave, PACKED=packed,
            SIGNED=signed, FROM_COLUMNS=source is not z, WORDS=words,
            CHUNKS=ceil_div(n_words, words), num_warps=max(1, words // PER_WARP),
        )  # fmt: skip

# ruff: noqa: ANN001, ANN201, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""Exact top-k of each row with one read of the row, and no fallback for any row.

A row is cut into segments, and segments into parts. Rank segments by (largest entry, then lowest
index). If an entry's segment is not among the first k, each of these k segments has an entry that
comes before it, so it is not in the row's top k. Hence the k best segments contain the top k. The
same argument selects their k best parts, and then the k best entries. The amount of work never
depends on the data.

Each of these three selections finds the k-th largest key bit by bit, by counting how many keys are
at least as large, and then writes the selected positions in ascending order.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.config import UsageError
from saelab.kernels.cuda import MAX_K
from saelab.kernels.sizes import ceil_div, power_of_two, segment_width, segments
from saelab.kernels.triton.select.effects import Effects
from saelab.kernels.triton.select.sort import descending

CHUNK = 4096
"""Entries that a program reads at a time."""
Maxima = tuple[Float[Tensor, "batch segment"], int]
"""The largest entry, |entry| or score of each segment of each row; and a segment's width."""


class PreActs(NamedTuple):
    """What codes are selected from.

    Attributes:
        values: `[batch d_sae]`, the pre-activations.
        maxima: of their segments; None if they are to be read from the values.
    """

    values: Float[Tensor, "_ d_sae"]
    maxima: Maxima | None = None


@triton.jit
@no_type_check
def order_key(values, valid):
    """Integers that sort like the values, with +0 equal to -0; the least integer if not valid."""
    bits = (values + 0.0).to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(valid, bits, -0x80000000)


@triton.jit
@no_type_check
def read(row, at, valid, MAGNITUDE: tl.constexpr):
    """The entries by which a row is ranked, as float32; -inf beyond its end."""
    x = tl.load(row + at, mask=valid, other=float("-inf")).to(tl.float32)
    if MAGNITUDE:
        x = tl.where(valid, tl.abs(x), float("-inf"))
    return x


@triton.jit
@no_type_check
def _ranks(row, effects, at, valid, MAGNITUDE: tl.constexpr, SCORED: tl.constexpr):
    """The numbers that rank a row's entries: their values, or scores."""
    x = read(row, at, valid, MAGNITUDE)
    if SCORED:
        products, base, beta = effects
        product = tl.load(products + at, mask=valid, other=0.0).to(tl.float32)
        score = tl.maximum(x, 0.0) * (base + beta * tl.abs(product))
        x = tl.where(valid, score, float("-inf"))
    return x


@triton.jit
@no_type_check
def write_best(keys, labels, to, K, BITS: tl.constexpr):
    """Write the labels of the K largest keys by position; of equal keys, the first ones.

    Only the upper BITS bits of the keys differ.
    """
    if BITS == 16:
        # The lower half of a bfloat16's key is all ones if the number is negative.
        keys = keys & -0x10000
    limit = tl.full([], -0x80000000, tl.int32)
    for done in range(BITS):
        higher = limit + (tl.full([], 1, tl.int32) << (31 - done))
        limit = tl.where(tl.sum((keys >= higher).to(tl.int32)) >= K, higher, limit)
    greater = (keys > limit).to(tl.int32)
    equal = (keys == limit).to(tl.int32)
    missing = K - tl.sum(greater)
    # Both running counts in one integer: they stay below 2^16.
    counts = tl.cumsum((greater << 16) + equal)
    n_equal = counts & 0xFFFF
    slot = (counts >> 16) + tl.minimum(n_equal, missing) - 1
    tl.store(to + slot, labels, mask=(greater == 1) | ((equal == 1) & (n_equal <= missing)))
    tl.debug_barrier()


@triton.jit
@no_type_check
def _maxima_kernel(
    pre_acts,
    products,
    base,
    beta,
    maxima,
    m: tl.constexpr,
    n: tl.constexpr,
    W: tl.constexpr,
    STEP: tl.constexpr,
    EVEN: tl.constexpr,
    MAGNITUDE: tl.constexpr,
    SCORED: tl.constexpr,
):
    """The largest entry of each segment of W."""
    blocks: tl.constexpr = (n + STEP - 1) // STEP
    token = (tl.program_id(0) // blocks).to(tl.int64)
    segment = (tl.program_id(0) % blocks) * STEP + tl.arange(0, STEP)
    at = segment[:, None] * W + tl.arange(0, W)[None, :]
    effects = (products + token * m, tl.load(base + token) if SCORED else 0.0, beta)
    tile = _ranks(pre_acts + token * m, effects, at, (at < m) | EVEN, MAGNITUDE, SCORED)
    tl.store(maxima + token * n + segment, tl.max(tile, 1), mask=segment < n)


@triton.jit
@no_type_check
def _select_kernel(
    pre_acts,
    products,
    base,
    beta,
    maxima,
    scratch,
    values,
    indices,
    m: tl.constexpr,
    n: tl.constexpr,
    k: tl.constexpr,
    K: tl.constexpr,
    W: tl.constexpr,
    PARTS: tl.constexpr,
    N: tl.constexpr,
    BITS: tl.constexpr,
    MAGNITUDE: tl.constexpr,
    RECTIFY: tl.constexpr,
    SORT: tl.constexpr,
    SCORED: tl.constexpr,
):
    """The k best entries of a row, given its segments' maxima."""
    WIDTH: tl.constexpr = W // PARTS
    token = tl.program_id(0).to(tl.int64)
    row = pre_acts + token * m
    effects = (products + token * m, tl.load(base + token) if SCORED else 0.0, beta)
    chosen = scratch + token * 3 * K
    segment = tl.arange(0, N)
    best = tl.load(maxima + token * n + segment, mask=segment < n, other=0.0).to(tl.float32)
    write_best(order_key(best, segment < n), segment, chosen, K, BITS)

    part = tl.arange(0, K * PARTS)
    part = tl.load(chosen + part // PARTS) * PARTS + part % PARTS
    at = part[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    best = tl.max(_ranks(row, effects, at, at < m, MAGNITUDE, SCORED), 1)
    write_best(order_key(best, part * WIDTH < m), part, chosen + K, K, BITS)

    entry = tl.arange(0, K * WIDTH)
    entry = tl.load(chosen + K + entry // WIDTH) * WIDTH + entry % WIDTH
    key = order_key(_ranks(row, effects, entry, entry < m, MAGNITUDE, SCORED), entry < m)
    # The first k are written before the others, which only fill up to a power of two.
    write_best(key, entry, chosen + 2 * K, k, BITS)

    slot = tl.arange(0, K)
    kept = slot < k
    index = tl.load(chosen + 2 * K + slot, mask=kept, other=0)
    if SORT:
        key = order_key(_ranks(row, effects, index, kept, MAGNITUDE, SCORED), kept)
        ranked = descending((key.to(tl.int64) << 32) + (K - slot), K)
        index = tl.load(chosen + 2 * K + K - (ranked & 0xFFFFFFFF), mask=kept, other=0)
    value = tl.load(row + index, mask=kept, other=0.0)
    if RECTIFY:
        value = tl.where(value > 0, value, 0.0)
    tl.store(values + token * k + slot, value, mask=kept)
    tl.store(indices + token * k + slot, index, mask=kept)


def segment_maxima(
    pre_acts: Float[Tensor, "batch d_sae"], *, by_magnitude: bool, effects: Effects | None = None
) -> Maxima:
    """See `Maxima`."""
    batch, m = pre_acts.shape
    W, n = segment_width(m), segments(m)
    step = min(CHUNK // W, power_of_two(n))
    dtype = pre_acts.dtype if effects is None else torch.float32
    maxima = pre_acts.new_empty(batch, n, dtype=dtype)
    _maxima_kernel[(batch * ceil_div(n, step),)](
        pre_acts, *_arguments(pre_acts, effects), maxima, m=m, n=n, W=W, STEP=step,
        EVEN=m % (step * W) == 0, MAGNITUDE=by_magnitude, SCORED=effects is not None,
    )  # fmt: skip
    return maxima, W


def _arguments(
    pre_acts: Float[Tensor, "batch d_sae"], effects: Effects | None
) -> tuple[Tensor, Tensor, float]:
    """The kernels' arguments from the effects; without effects, placeholders that are not read."""
    if effects is None:
        return pre_acts, pre_acts, 0.0
    return effects.products, effects.base, float(effects.rules.beta)


def select_top_k(
    pre_acts: Float[Tensor, "batch d_sae"],
    k: int,
    *,
    by_magnitude: bool = False,
    rectify: bool = False,
    ordered: bool = True,
    effects: Effects | None = None,
    maxima: Maxima | None = None,
    out: tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]] | None = None,
) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
    """The k largest stored entries of each row, and their positions (int32).

    Of equal entries, those with the lowest index are kept. Rows may hold anything except NaN. Each
    row is read once, and `64 k` to `128 k` of its entries at most a second time.

    Args:
        pre_acts: contiguous.
        k: at most `MAX_K` and d_sae.
        by_magnitude: rank by |x|; values keep their signs.
        rectify: return max(0, value).
        ordered: whether entries are sorted by falling rank, equal ones by index; else by index.
        effects: rank by max(0, entry) * (base + beta * |product|), in float32.
        maxima: the result of `segment_maxima`, if already computed.
        out: memory for the result; values of any float dtype.

    Raises:
        UsageError: k is out of range.
    """
    batch, m = pre_acts.shape
    if not 0 < k <= min(MAX_K, m):
        raise UsageError(f"k={k} must be within 1..{min(MAX_K, m)} for d_sae={m}; lower k.")
    if out is None:
        out = pre_acts.new_empty(batch, k), pre_acts.new_empty(batch, k, dtype=torch.int32)
    if not batch:
        return out
    K = max(2, power_of_two(k))
    if maxima is None:
        maxima = segment_maxima(pre_acts, by_magnitude=by_magnitude, effects=effects)
    best, W = maxima
    n = best.shape[1]
    scratch = out[1].new_empty(batch, 3 * K)
    _select_kernel[(batch,)](
        pre_acts,
        *_arguments(pre_acts, effects),
        best,
        scratch,
        *out,
        m=m,
        n=n,
        k=k,
        K=K,
        W=W,
        PARTS=W // 16,
        N=max(K, power_of_two(n)),
        BITS=16 if best.dtype == torch.bfloat16 else 32,
        MAGNITUDE=by_magnitude,
        RECTIFY=rectify,
        SORT=ordered,
        SCORED=effects is not None,
        num_warps=1 if K <= 64 else 4,
    )
    return out

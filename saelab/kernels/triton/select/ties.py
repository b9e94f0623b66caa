# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""Ties at the edge of a row's top k, resolved by the products before rounding.

Rounding keeps order, so entries stored above the k-th largest are in the top k before rounding too;
only entries equal to the k-th are in doubt. In bfloat16 a row of 32,768 has about three candidates
for two places. Their products are computed again in float32, one dot product each.
"""

from typing import NamedTuple, no_type_check

import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.sizes import power_of_two
from saelab.kernels.triton.select.rows import order_key, read

ENTRIES = 1024
"""Entries that a program examines at a time."""
COLUMNS = 256


class TieFactors(NamedTuple):
    """What pre-activations `inputs @ W^T + bias` are made of, as the product reads it."""

    inputs: Float[Tensor, "batch d_in"]
    W: Float[Tensor, "d_sae d_in"]
    bias: Float[Tensor, " d_sae"]


@triton.jit
@no_type_check
def _product(factors, token, latent, d, MAGNITUDE: tl.constexpr, COLUMNS: tl.constexpr):
    """One pre-activation in float32, or its magnitude."""
    inputs, W, bias = factors
    total = tl.zeros([COLUMNS], tl.float32)
    start = 0
    while start < d:
        column = start + tl.arange(0, COLUMNS)
        x = tl.load(inputs + token * d + column, mask=column < d, other=0.0).to(tl.float32)
        w = tl.load(W + latent.to(tl.int64) * d + column, mask=column < d, other=0.0)
        total += x * w.to(tl.float32)
        start += COLUMNS
    product = tl.sum(total) + tl.load(bias + latent).to(tl.float32)
    return tl.abs(product) if MAGNITUDE else product


@triton.jit
@no_type_check
def _tied(
    row,
    segments,
    start,
    n_segments,
    limit,
    m,
    W: tl.constexpr,
    STEP: tl.constexpr,
    MAGNITUDE: tl.constexpr,
):
    """The entries of STEP segments from `start` on, and which of them equal the limit."""
    slot = start + tl.arange(0, STEP)
    there = slot < n_segments
    segment = tl.load(segments + slot, mask=there, other=0)
    at = segment[:, None] * W + tl.arange(0, W)[None, :]
    valid = there[:, None] & (at < m)
    return at, valid & (order_key(read(row, at, valid, MAGNITUDE), valid) == limit)


@triton.jit
@no_type_check
def _segments_at_limit(maxima, to, limit, n, N: tl.constexpr):
    """Write the segments that may have entries equal to the limit, in order; and their number."""
    segment = tl.arange(0, N)
    there = segment < n
    best = tl.load(maxima + segment, mask=there, other=0.0).to(tl.float32)
    has = there & (order_key(best, there) >= limit)
    tl.store(to + tl.cumsum(has.to(tl.int32)) - 1, segment, mask=has)
    tl.debug_barrier()
    return tl.sum(has.to(tl.int32))


@triton.jit
@no_type_check
def _keep_better(best, latents, slot, room, latent, product):
    """Replace the worst kept latent by a better one.

    Latents come in ascending order. Of equally bad latents the last one is replaced, and none by an
    equal one.
    """
    kept = slot < room
    worst = tl.min(tl.where(kept, best, float("inf")))
    at_worst = kept & (best == worst)
    last = tl.max(tl.where(at_worst, latents, -0x7FFFFFFF))
    taken = at_worst & (latents == last) & (best < product)
    return tl.where(taken, product, best), tl.where(taken, latent, latents)


@triton.jit
@no_type_check
def _settle_kernel(
    pre_acts,
    maxima,
    inputs,
    W_enc,
    bias,
    segments,
    values,
    indices,
    m,
    d,
    n,
    stride,
    k: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
    STEP: tl.constexpr,
    COLUMNS: tl.constexpr,
    MAGNITUDE: tl.constexpr,
):
    """One row: of the entries equal to its k-th largest, keep those with the largest products."""
    token = tl.program_id(0).to(tl.int64)
    row = pre_acts + token * m
    ours = segments + token * stride
    slot = tl.arange(0, K)
    kept = slot < k
    index = tl.load(indices + token * k + slot, mask=kept, other=0)
    key = order_key(read(row, index, kept, MAGNITUDE), kept)
    limit = tl.min(tl.where(kept, key, 0x7FFFFFFF))
    edge = kept & (key == limit)
    room = tl.sum(edge.to(tl.int32))
    # Below zero nothing fires, so the choice has no effect.
    if limit > 0:
        n_segments = _segments_at_limit(maxima + token * n, ours, limit, n, N)
        n_tied = 0
        start = 0
        while start < n_segments:
            _, tied = _tied(row, ours, start, n_segments, limit, m, W, STEP, MAGNITUDE)
            n_tied += tl.sum(tied.to(tl.int32))
            start += STEP
        if n_tied > room:
            best = tl.full([K], float("-inf"), tl.float32)
            latents = -slot
            start = 0
            while start < n_segments:
                at, tied = _tied(row, ours, start, n_segments, limit, m, W, STEP, MAGNITUDE)
                latent = tl.min(tl.where(tied, at, 0x7FFFFFFF))
                while latent < m:
                    factors = (inputs, W_enc, bias)
                    product = _product(factors, token, latent, d, MAGNITUDE, COLUMNS)
                    best, latents = _keep_better(best, latents, slot, room, latent, product)
                    tied = tied & (at != latent)
                    latent = tl.min(tl.where(tied, at, 0x7FFFFFFF))
                start += STEP
            # The places of the tied codes receive the chosen latents one by one.
            tl.debug_barrier()
            tl.store(ours + slot, latents, mask=slot < room)
            tl.debug_barrier()
            latent = tl.load(ours + tl.cumsum(edge.to(tl.int32)) - 1, mask=edge, other=0)
            tl.store(indices + token * k + slot, latent, mask=edge)
            tl.store(values + token * k + slot, tl.load(row + latent, mask=edge), mask=edge)


def settle_ties(
    pre_acts: Float[Tensor, "batch d_sae"],
    maxima: Float[Tensor, "batch segment"],
    width: int,
    factors: TieFactors,
    codes: tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]],
    *,
    by_magnitude: bool,
) -> None:
    """Make codes the top k of the pre-activations before rounding, where these are positive.

    Args:
        pre_acts: the stored pre-activations.
        maxima: maxima of their segments, see `segment_maxima`.
        width: width of a segment.
        factors: the factors of the pre-activations; products are summed in float32, and of equal
            sums the lowest index is kept.
        codes: the top k of `pre_acts`, rectified or by magnitude; changed in place, in no order.
        by_magnitude: whether they were selected by magnitude.
    """
    (batch, m), n, k = pre_acts.shape, maxima.shape[1], codes[0].shape[1]
    d = factors.inputs.shape[1]
    K = max(2, power_of_two(k))
    scratch = codes[1].new_empty(batch, max(n, K))
    _settle_kernel[(batch,)](
        pre_acts, maxima, *factors, scratch, *codes, m, d, n, scratch.shape[1],
        k=k, K=K, N=max(K, power_of_two(n)), W=width, STEP=max(1, ENTRIES // width),
        COLUMNS=min(COLUMNS, max(16, power_of_two(d))), MAGNITUDE=by_magnitude,
        num_warps=1 if K <= 64 else 4,
    )  # fmt: skip

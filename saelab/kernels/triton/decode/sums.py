# ruff: noqa: ANN001, ANN202, PLR0913, SIM108 - Triton kernels take pointers, which have no Python type.
"""Latent-major sums: the gradient of a weight matrix from the few active pairs.

One warp does one latent on one chunk of columns. All latents of a chunk come before the next chunk,
so the gathered part of the batch stays in cache. A latent with many pairs is first done in slices,
and the slices' sums are added in order, so the result does not depend on timing.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.sizes import ceil_div, power_of_two
from saelab.kernels.torch.pairs import LatentPairs, Slices

COLUMNS = 256
PAIRS = 8
"""Pairs whose rows a program loads at a time."""


@triton.jit
@no_type_check
def _sum_pairs(
    order,
    tokens,
    weights,
    rows,
    start,
    stop,
    column,
    inside,
    d,
    PAIRS: tl.constexpr,
):
    """The sum of weight * row over the pairs `start` to `stop`."""
    total = tl.zeros_like(column).to(tl.float32)
    while start < stop:
        at = start + tl.arange(0, PAIRS)
        pair = tl.load(order + at, mask=at < stop, other=0)
        token = tl.load(tokens + pair, mask=at < stop, other=0)
        there = (at < stop)[:, None] & inside[None, :]
        row = tl.load(rows + token.to(tl.int64)[:, None] * d + column[None, :], mask=there, other=0)
        weight = tl.load(weights + pair, mask=at < stop, other=0.0).to(tl.float32)
        total += tl.sum(weight[:, None] * row.to(tl.float32), 0)
        start += PAIRS
    return total


@triton.jit
@no_type_check
def _sum_kernel(
    order,
    offsets,
    tokens,
    weights,
    rows,
    first,
    owner,
    sums,
    out,
    m,
    d,
    SLICED: tl.constexpr,
    SLICE: tl.constexpr,
    COLUMNS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Sums over a latent's pairs, or, if `SLICED`, over those of a slice into `sums`."""
    if SLICED:
        blocks = tl.num_programs(0) // tl.cdiv(d, COLUMNS)
    else:
        blocks = m
    piece = tl.program_id(0) % blocks
    column = (tl.program_id(0) // blocks) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < d
    if SLICED:
        live = piece < tl.load(first + m)
        latent = tl.load(owner + piece, mask=live, other=0)
        start = tl.load(offsets + latent) + (piece - tl.load(first + latent)) * SLICE
        stop = tl.minimum(start + SLICE, tl.load(offsets + latent + 1))
        stop = tl.where(live, stop, start)
    else:
        start = tl.load(offsets + piece)
        stop = tl.load(offsets + piece + 1)
        stop = tl.where(tl.load(first + piece + 1) > tl.load(first + piece), start, stop)
        live = True
    total = _sum_pairs(order, tokens, weights, rows, start, stop, column, inside, d, PAIRS=PAIRS)
    if SLICED:
        tl.store(sums + piece.to(tl.int64) * d + column, total, mask=inside & live)
    else:
        part = tl.load(first + piece)
        while part < tl.load(first + piece + 1):
            total += tl.load(sums + part.to(tl.int64) * d + column, mask=inside, other=0.0)
            part += 1
        tl.store(out + piece.to(tl.int64) * d + column, total, mask=inside)


def sum_by_latent(
    pairs: LatentPairs,
    slices: Slices,
    tokens: Int[Tensor, " pair"],
    weights: Float[Tensor, " pair"],
    rows: Float[Tensor, "batch d"],
) -> Float[Tensor, "d_sae d"]:
    """`z^T @ rows` for codes z with these weights, in float32.

    Args:
        pairs: the codes' pairs by latent.
        slices: slices of the same codes.
        tokens: row of each entry, in the codes' order.
        weights: weight of each entry, in the codes' order.
        rows: the rows to sum; contiguous.
    """
    m, d = pairs.d_sae, rows.shape[1]
    out = rows.new_empty(m, d, dtype=torch.float32)
    columns = min(COLUMNS, max(16, power_of_two(d)))
    sums = out.new_empty(len(slices.latent), d)
    for sliced in (True, False):
        _sum_kernel[((len(sums) if sliced else m) * ceil_div(d, columns),)](
            pairs.order, pairs.offsets, tokens, weights, rows, slices.first, slices.latent, sums,
            out, m, d,
            SLICED=sliced, SLICE=slices.size, COLUMNS=columns, PAIRS=PAIRS,
            num_warps=1, num_stages=1,
        )  # fmt: skip
    return out

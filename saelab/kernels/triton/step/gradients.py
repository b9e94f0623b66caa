# ruff: noqa: ANN001, ANN201, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""A latent's gradients: sums over its tokens, and the norm of all latents' gradients.

Both passes over the latents use this. A latent with more tokens than a slice is first summed in
slices; a dead latent receives AuxK's gradients. The result does not depend on timing.
"""

from typing import NamedTuple, no_type_check

import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor


class Sums(NamedTuple):
    """The arguments of both latent-major kernels, in their order.

    Attributes:
        order: order of the pairs by latent.
        offsets: start of each latent's pairs.
        values: values of the codes.
        gradient: gradient of the codes.
        error_rows: row of errors of each pair, in their order, if rows differ in length; else not
            read. Of each entry, it would be known one access to memory later.
        errors: x_hat - x; of a transcoder, the error of its target.
        inputs: what the encoder reads: x less its bias.
        first: the first slice of each latent that is split.
        pieces: `[capacity d_out + d_in]`, sums of the slices.
        scalars: `[capacity 3]`, sums of gradient, value * gradient, and firings of the slices.
    """

    order: Int[Tensor, " pair"]
    offsets: Int[Tensor, " d_sae_1"]
    values: Float[Tensor, "*entry"]
    gradient: Float[Tensor, "*entry"]
    error_rows: Int[Tensor, "*pair"]
    errors: Float[Tensor, "row d_out"]
    inputs: Float[Tensor, "batch d_in"]
    first: Int[Tensor, " d_sae_1"]
    pieces: Float[Tensor, "capacity d_both"]
    scalars: Float[Tensor, "capacity 3"]


@triton.jit
@no_type_check
def program_part(m, LATENTS: tl.constexpr):
    """The group of LATENTS latents, and the chunk of columns, that this program does."""
    groups = tl.cdiv(m, LATENTS)
    return tl.program_id(0) % groups, tl.program_id(0) // groups


@triton.jit
@no_type_check
def columns_of(chunk, d, d_in, COLUMNS: tl.constexpr, EVEN: tl.constexpr, SQUARE: tl.constexpr):
    """A chunk's columns, and which of them the decoder's and the encoder's rows have."""
    column = chunk * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < d) | EVEN
    return column, inside, inside if SQUARE else column < d_in


@triton.jit
@no_type_check
def _sum_both(
    order,
    codes,
    rows,
    start,
    stop,
    column,
    inside,
    reads,
    d,
    d_in,
    k: tl.constexpr,
    GROUPS: tl.constexpr,
    PAIRS: tl.constexpr,
    SQUARE: tl.constexpr,
    TIED: tl.constexpr,
):
    """Sums over the pairs `start` to `stop`.

    The sums of value * error, gradient * input, gradient, value * gradient, and of firings. If k is
    0, rows differ in length, each has GROUPS rows of errors, and `error_rows` gives each pair's
    row. If the encoder reads as many columns as the decoder writes, SQUARE holds. TIED is 0 for an
    encoder of its own, 1 for a matrix that also decodes, of any norm, and 2 for one of unit atoms
    whose pairs have gradients for rows of errors.
    """
    values, gradient, error_rows = codes
    errors, inputs = rows
    to_dec = tl.zeros_like(column).to(tl.float32)
    to_enc = tl.zeros_like(column).to(tl.float32)
    bias = tl.zeros([PAIRS], tl.float32)
    radial = tl.zeros([PAIRS], tl.float32)
    fired = tl.zeros([PAIRS], tl.float32)
    while start < stop:
        at = start + tl.arange(0, PAIRS)
        kept = at < stop
        pair = tl.load(order + at, mask=kept, other=0)
        row = tl.load(error_rows + at, mask=kept, other=0) if k == 0 else pair // k
        there = kept[:, None] & inside[None, :]
        place = row.to(tl.int64)[:, None] * d + column[None, :]
        error = tl.load(errors + place, mask=there, other=0.0, eviction_policy="evict_last")
        value = tl.load(values + pair, mask=kept, other=0.0)
        grad = tl.load(gradient + pair, mask=kept, other=0.0)
        if TIED == 2:
            to_dec += tl.sum(error.to(tl.float32), 0)
        else:
            if not SQUARE:
                there = kept[:, None] & reads[None, :]
            if GROUPS > 1 or not SQUARE:
                place = (row // GROUPS).to(tl.int64)[:, None] * d_in + column[None, :]
            x = tl.load(inputs + place, mask=there, other=0.0, eviction_policy="evict_last")
            to_dec += tl.sum(value[:, None] * error.to(tl.float32), 0)
            to_enc += tl.sum(grad[:, None] * x.to(tl.float32), 0)
        bias += grad
        radial += value * grad
        fired += tl.where(value != 0, 1.0, 0.0)
        start += PAIRS
    return to_dec, to_enc, tl.sum(bias), tl.sum(radial), tl.sum(fired)


@triton.jit
@no_type_check
def slice_kernel(
    order,
    offsets,
    values,
    gradient,
    error_rows,
    errors,
    inputs,
    first,
    owner,
    sums,
    scalars,
    capacity,
    m,
    d,
    d_in,
    k: tl.constexpr,
    GROUPS: tl.constexpr,
    SLICE: tl.constexpr,
    COLUMNS: tl.constexpr,
    PAIRS: tl.constexpr,
    EVEN: tl.constexpr,
    SQUARE: tl.constexpr,
    TIED: tl.constexpr,
):
    """The sums of one slice of a split latent on one chunk."""
    piece = tl.program_id(0) % capacity
    if piece < tl.load(first + m):
        chunk = tl.program_id(0) // capacity
        column, inside, reads = columns_of(chunk, d, d_in, COLUMNS, EVEN, SQUARE)
        latent = tl.load(owner + piece)
        start = tl.load(offsets + latent) + (piece - tl.load(first + latent)) * SLICE
        stop = tl.minimum(start + SLICE, tl.load(offsets + latent + 1))
        to_dec, to_enc, bias, radial, fired = _sum_both(
            order,
            (values, gradient, error_rows),
            (errors, inputs),
            start,
            stop,
            column,
            inside,
            reads,
            d,
            d_in,
            k,
            GROUPS,
            PAIRS,
            SQUARE,
            TIED,
        )
        at = piece.to(tl.int64) * (d + d_in) + column
        tl.store(sums + at, to_dec, mask=inside)
        tl.store(sums + at + d, to_enc, mask=reads)
        if chunk == 0:
            tl.store(scalars + piece * 3, bias)
            tl.store(scalars + piece * 3 + 1, radial)
            tl.store(scalars + piece * 3 + 2, fired)


@triton.jit
@no_type_check
def latent_gradients(
    pairs,
    codes,
    rows,
    pieces,
    extra,
    latent,
    column,
    inside,
    reads,
    factor,
    d,
    d_in,
    k: tl.constexpr,
    GROUPS: tl.constexpr,
    PAIRS: tl.constexpr,
    EXTRA: tl.constexpr,
    SQUARE: tl.constexpr,
    TIED: tl.constexpr,
):
    """A chunk of the gradients of both rows of a latent, and its scalars.

    The gradients of the decoder's row (radial part included), of the encoder's row, and of the
    bias; the radial part; and the number of firings. Of one row that does both, the first is all,
    and there is no radial part if it may have any norm, and no bias if it is pursued.
    """
    order, offsets = pairs
    first, sums, scalars = pieces
    part = tl.load(first + latent)
    end = tl.load(first + latent + 1)
    start = tl.load(offsets + latent)
    stop = tl.where(end > part, start, tl.load(offsets + latent + 1))
    to_dec, to_enc, bias, radial, fired = _sum_both(
        order, codes, rows, start, stop, column, inside, reads, d, d_in, k, GROUPS, PAIRS, SQUARE,
        TIED,
    )  # fmt: skip
    while part < end:
        piece = part.to(tl.int64) * (d + d_in) + column
        to_dec += tl.load(sums + piece, mask=inside, other=0.0)
        to_enc += tl.load(sums + piece + d, mask=reads, other=0.0)
        bias += tl.load(scalars + part * 3)
        radial += tl.load(scalars + part * 3 + 1)
        fired += tl.load(scalars + part * 3 + 2)
        part += 1
    to_dec = factor * to_dec
    if EXTRA:
        slots, more_dec, more_enc, more_scalars, slope = extra
        slot = tl.load(slots + latent)
        has = slot >= 0
        at = slot.to(tl.int64) * d + column
        weight = tl.load(slope)
        to_dec += weight * tl.load(more_dec + at, mask=inside & has, other=0.0)
        if not SQUARE:
            at = slot.to(tl.int64) * d_in + column
        to_enc += weight * tl.load(more_enc + at, mask=reads & has, other=0.0)
        bias += weight * tl.load(more_scalars + slot * 2, mask=has, other=0.0)
        # A row that encodes too has as much of a radial part from there.
        both = 2 if TIED else 1
        radial += both * weight * tl.load(more_scalars + slot * 2 + 1, mask=has, other=0.0)
    if TIED:
        to_dec += to_enc
        to_enc = tl.zeros_like(to_enc)
        bias = bias if TIED == 1 else 0.0
        radial = radial if TIED == 2 else 0.0
    return to_dec, to_enc, bias, radial, fired

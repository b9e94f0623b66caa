# ruff: noqa: ANN001, ANN201, PLR0913 - Triton kernels take pointers, which have no Python type.
"""The norm of all latents' gradients, which clipping needs before Adam moves anything."""

from typing import no_type_check

import triton
import triton.language as tl

from saelab.kernels.triton.step.gradients import columns_of, latent_gradients, program_part


@triton.jit
@no_type_check
def norm_kernel(
    order,
    offsets,
    values,
    gradient,
    error_rows,
    errors,
    inputs,
    first,
    sums,
    scalars,
    slots,
    more_dec,
    more_enc,
    more_scalars,
    slope,
    squares,
    to_bias,
    factor,
    m,
    d,
    d_in,
    k: tl.constexpr,
    GROUPS: tl.constexpr,
    LATENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PAIRS: tl.constexpr,
    EVEN: tl.constexpr,
    EXTRA: tl.constexpr,
    SQUARE: tl.constexpr,
    TIED: tl.constexpr,
):
    """The squared norm of LATENTS latents' gradients on one chunk; bias gradients are complete.

    The decoder's gradient counts without its radial part. For a unit row this part is its product
    with the row.
    """
    group, chunk = program_part(m, LATENTS)
    chunks = tl.cdiv(tl.maximum(d, d_in), COLUMNS)
    column, inside, reads = columns_of(chunk, d, d_in, COLUMNS, EVEN, SQUARE)
    total = tl.zeros([COLUMNS], tl.float32)
    rest = tl.zeros([], tl.float32)
    latent = group * LATENTS
    while latent < tl.minimum((group + 1) * LATENTS, m):
        pairs, codes = (order, offsets), (values, gradient, error_rows)
        pieces = (first, sums, scalars)
        extra = (slots, more_dec, more_enc, more_scalars, slope)
        to_dec, to_enc, bias, radial, _ = latent_gradients(
            pairs, codes, (errors, inputs), pieces, extra, latent, column, inside, reads, factor,
            d, d_in, k, GROUPS, PAIRS, EXTRA, SQUARE, TIED,
        )  # fmt: skip
        # What is masked is zero: no number is read there.
        total += tl.where(inside | reads, to_dec * to_dec + to_enc * to_enc, 0.0)
        if chunk == 0:
            rest += bias * bias - radial * radial
            tl.store(to_bias + latent, bias)
        latent += 1
    tl.store(squares + group * chunks + chunk, tl.sum(total) + rest)

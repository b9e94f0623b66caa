# ruff: noqa: ANN001, ANN201, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
# pyright: reportMissingParameterType=false, reportCallIssue=false
"""The optimizer's step inside the latent-major pass: no weight gradient is ever in memory.

One visit to a latent sums both gradients of a chunk of its two rows over its tokens, removes the
radial part, moves the rows by Adam and writes them with their copies. The decoder's row is left a
little off the unit sphere; the squares of its chunks' norms are written beside it, and the next
step reads it as `scale * row`, so the row never has to be read again to be renormalised.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _adam(p, g, moments, at, mask, rates, B1: tl.constexpr, B2: tl.constexpr, EPS: tl.constexpr):
    """The parameter after torch.optim.Adam's step; both moments are written."""
    step_size = tl.load(rates)
    correction = tl.load(rates + 1)
    m = tl.load(moments[0] + at, mask=mask, other=0.0, eviction_policy="evict_first")
    v = tl.load(moments[1] + at, mask=mask, other=0.0, eviction_policy="evict_first")
    m += (1 - B1) * (g - m)
    v = B2 * v + (1 - B2) * g * g
    tl.store(moments[0] + at, m, mask=mask, eviction_policy="evict_first")
    tl.store(moments[1] + at, v, mask=mask, eviction_policy="evict_first")
    return p - step_size * m / (tl.sqrt(v) / correction + EPS)


@triton.jit
@no_type_check
def _sum_both(
    order, codes, rows, start, stop, column, inside, d, k: tl.constexpr, PAIRS: tl.constexpr
):
    """Sums over the pairs `start` to `stop`.

    Of value * error, gradient * input, gradient, value * gradient, and of how often it fired.
    """
    values, gradient = codes
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
        place = (pair // k).to(tl.int64)[:, None] * d + column[None, :]
        there = kept[:, None] & inside[None, :]
        error = tl.load(errors + place, mask=there, other=0.0, eviction_policy="evict_last")
        x = tl.load(inputs + place, mask=there, other=0.0, eviction_policy="evict_last")
        value = tl.load(values + pair, mask=kept, other=0.0)
        grad = tl.load(gradient + pair, mask=kept, other=0.0)
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
    errors,
    inputs,
    first,
    owner,
    sums,
    scalars,
    capacity,
    m,
    d,
    k: tl.constexpr,
    SLICE: tl.constexpr,
    COLUMNS: tl.constexpr,
    PAIRS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """The sums of one slice of a split latent on one chunk."""
    piece = tl.program_id(0) % capacity
    if piece < tl.load(first + m):
        chunk = tl.program_id(0) // capacity
        column = chunk * COLUMNS + tl.arange(0, COLUMNS)
        inside = (column < d) | EVEN
        latent = tl.load(owner + piece)
        start = tl.load(offsets + latent) + (piece - tl.load(first + latent)) * SLICE
        stop = tl.minimum(start + SLICE, tl.load(offsets + latent + 1))
        to_dec, to_enc, bias, radial, fired = _sum_both(
            order, (values, gradient), (errors, inputs), start, stop, column, inside, d, k, PAIRS
        )
        at = piece.to(tl.int64) * 2 * d + column
        tl.store(sums + at, to_dec, mask=inside)
        tl.store(sums + at + d, to_enc, mask=inside)
        if chunk == 0:
            tl.store(scalars + piece * 3, bias)
            tl.store(scalars + piece * 3 + 1, radial)
            tl.store(scalars + piece * 3 + 2, fired)


@triton.jit
@no_type_check
def _store_row(p, copy, at, value, mask):
    tl.store(p + at, value, mask=mask, eviction_policy="evict_first")
    tl.store(copy + at, value, mask=mask)


@triton.jit
@no_type_check
def _step_scalars(
    state, at, m, g, fired, batch, rates, B1: tl.constexpr, B2: tl.constexpr, EPS: tl.constexpr
):
    """A latent's bias, and the tokens since it fired."""
    bias, bias_m, bias_v, copy, since_fired = state
    b = _adam(tl.load(bias + at), g, (bias_m, bias_v), at, at < m, rates, B1, B2, EPS)
    tl.store(bias + at, b)
    tl.store(copy + at, b)
    age = tl.load(since_fired + at) + batch
    tl.store(since_fired + at, tl.where(fired > 0, 0, age))


@triton.jit
@no_type_check
def step_kernel(
    order,
    offsets,
    values,
    gradient,
    errors,
    inputs,
    first,
    sums,
    scalars,
    scale,
    norms,
    dec,
    dec_m,
    dec_v,
    dec_copy,
    enc,
    enc_m,
    enc_v,
    enc_copy,
    bias,
    bias_m,
    bias_v,
    bias_copy,
    since_fired,
    to_input,
    rates,
    factor,
    batch,
    m,
    d,
    k: tl.constexpr,
    B1: tl.constexpr,
    B2: tl.constexpr,
    EPS: tl.constexpr,
    LATENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PAIRS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Both rows of LATENTS latents, one after the other, on one chunk of columns.

    `to_input` receives what the encoder's bias gradients send to its input, summed over them.
    """
    groups = tl.cdiv(m, LATENTS)
    chunks = tl.cdiv(d, COLUMNS)
    group = tl.program_id(0) % groups
    chunk = tl.program_id(0) // groups
    column = chunk * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < d) | EVEN
    through = tl.zeros([COLUMNS], tl.float32)
    latent = group * LATENTS
    while latent < tl.minimum((group + 1) * LATENTS, m):
        at = latent.to(tl.int64) * d + column
        w = tl.load(dec + at, mask=inside, other=0.0, eviction_policy="evict_first")
        w *= tl.load(scale + latent)
        u = tl.load(enc + at, mask=inside, other=0.0, eviction_policy="evict_first")
        part = tl.load(first + latent)
        end = tl.load(first + latent + 1)
        start = tl.load(offsets + latent)
        stop = tl.where(end > part, start, tl.load(offsets + latent + 1))
        to_dec, to_enc, to_bias, radial, fired = _sum_both(
            order, (values, gradient), (errors, inputs), start, stop, column, inside, d, k, PAIRS
        )
        while part < end:
            piece = part.to(tl.int64) * 2 * d + column
            to_dec += tl.load(sums + piece, mask=inside, other=0.0)
            to_enc += tl.load(sums + piece + d, mask=inside, other=0.0)
            to_bias += tl.load(scalars + part * 3)
            radial += tl.load(scalars + part * 3 + 1)
            fired += tl.load(scalars + part * 3 + 2)
            part += 1
        through += to_bias * u
        to_dec = factor * to_dec - radial * w
        w = _adam(w, to_dec, (dec_m, dec_v), at, inside, rates, B1, B2, EPS)
        u = _adam(u, to_enc, (enc_m, enc_v), at, inside, rates, B1, B2, EPS)
        _store_row(dec, dec_copy, at, w, inside)
        _store_row(enc, enc_copy, at, u, inside)
        tl.store(norms + latent * chunks + chunk, tl.sum(tl.where(inside, w * w, 0.0)))
        if chunk == 0:
            state = (bias, bias_m, bias_v, bias_copy, since_fired)
            _step_scalars(state, latent, m, to_bias, fired, batch, rates, B1, B2, EPS)
        latent += 1
    tl.store(to_input + group.to(tl.int64) * d + column, through, mask=inside)


@triton.jit
@no_type_check
def scale_kernel(norms, scale, m, CHUNKS: tl.constexpr, BLOCK: tl.constexpr):
    """What makes each row of the decoder a unit vector."""
    latent = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for chunk in range(CHUNKS):
        total += tl.load(norms + latent * CHUNKS + chunk, mask=latent < m, other=1.0)
    tl.store(scale + latent, 1 / tl.maximum(tl.sqrt(total), 1e-12), mask=latent < m)


@triton.jit
@no_type_check
def vector_kernel(
    p,
    moments_m,
    moments_v,
    gradient,
    minus,
    rates,
    factor,
    n,
    B1: tl.constexpr,
    B2: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adam on a vector whose gradient is `factor * gradient - minus`."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    g = factor * tl.load(gradient + at, mask=inside, other=0.0)
    g -= tl.load(minus + at, mask=inside, other=0.0)
    value = tl.load(p + at, mask=inside, other=0.0)
    value = _adam(value, g, (moments_m, moments_v), at, inside, rates, B1, B2, EPS)
    tl.store(p + at, value, mask=inside)


@triton.jit
@no_type_check
def centre_kernel(x, bias, centred, n, d, BLOCK: tl.constexpr):
    """The input to the encoder, rounded once."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
    value -= tl.load(bias + at % d, mask=at < n, other=0.0)
    tl.store(centred + at, value, mask=at < n)

# ruff: noqa: ANN001, ANN201, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""The optimizer's step inside the latent-major pass: no weight gradient is ever in memory.

One visit to a latent sums both gradients of a chunk of its two rows over its tokens, removes the
radial part, updates the rows by Adam, and writes them with their copies. The decoder's row is then
slightly off the unit sphere. The squared norms of its chunks are written beside it, and the next
step reads it as `scale * row`, so the row is not read again to be renormalised.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.sizes import ceil_div
from saelab.kernels.triton.step.gradients import columns_of, latent_gradients, program_part
from saelab.kernels.triton.step.rounding import random_words, stochastic_round
from saelab.kernels.triton.step.rules import AdamRules
from saelab.kernels.triton.weights import Parameter, Weights


@triton.jit
@no_type_check
def _words(moments, draw, latent, chunk, COLUMNS: tl.constexpr):
    """Random words for both rows of a latent; nothing where no moment is rounded."""
    if moments.dtype.element_ty == tl.bfloat16:
        return random_words(draw, latent, chunk, COLUMNS)
    else:  # noqa: RET505 - Triton compiles what follows a return.
        return 0, 0


@triton.jit
@no_type_check
def _store_moment(to, value, word, mask):
    if to.dtype.element_ty == tl.bfloat16:
        value = stochastic_round(value, word)
    tl.store(to, value, mask=mask, eviction_policy="evict_first")


@triton.jit
@no_type_check
def _adam(
    p, g, moments, word, at, mask, rates, B1: tl.constexpr, B2: tl.constexpr, EPS: tl.constexpr
):
    """The parameter after torch.optim.Adam's step; both moments are written.

    In bfloat16 each is rounded by a half of the random word; the parameter moves by the moments
    before rounding.
    """
    step_size = tl.load(rates)
    correction = tl.load(rates + 1)
    m = tl.load(moments[0] + at, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    v = tl.load(moments[1] + at, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    m += (1 - B1) * (g - m)
    v = B2 * v + (1 - B2) * g * g
    _store_moment(moments[0] + at, m, word, mask)
    _store_moment(moments[1] + at, v, word >> 16, mask)
    return p - step_size * m / (tl.sqrt(v) / correction + EPS)


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
    """A latent's bias, and the number of tokens since it fired."""
    bias, bias_m, bias_v, copy, since_fired = state
    b = _adam(tl.load(bias + at), g, (bias_m, bias_v), 0, at, at < m, rates, B1, B2, EPS)
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
    error_rows,
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
    slots,
    more_dec,
    more_enc,
    more_scalars,
    slope,
    rates,
    step,
    seed,
    first_latent,
    every,
    clip,
    factor,
    batch,
    m,
    d,
    d_in,
    k: tl.constexpr,
    GROUPS: tl.constexpr,
    B1: tl.constexpr,
    B2: tl.constexpr,
    EPS: tl.constexpr,
    LATENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PAIRS: tl.constexpr,
    EVEN: tl.constexpr,
    EXTRA: tl.constexpr,
    CLIP: tl.constexpr,
    DECAY: tl.constexpr,
    SQUARE: tl.constexpr,
    TIED: tl.constexpr,
):
    """Both rows of LATENTS latents, one after the other, on one chunk of columns.

    If they are one row (TIED), it is the decoder's. `to_input` receives the gradients that the
    encoder's biases send to its input, summed over latents. `step`, `seed`, `first_latent` and
    `every` are those of `random_words`, for moments in bfloat16; else they are not read.
    """
    group, chunk = program_part(m, LATENTS)
    chunks = tl.cdiv(tl.maximum(d, d_in), COLUMNS)
    column, inside, reads = columns_of(chunk, d, d_in, COLUMNS, EVEN, SQUARE)
    through = tl.zeros([COLUMNS], tl.float32)
    latent = group * LATENTS
    while latent < tl.minimum((group + 1) * LATENTS, m):
        at = latent.to(tl.int64) * d + column
        w = tl.load(dec + at, mask=inside, other=0.0, eviction_policy="evict_first")
        w *= tl.load(scale + latent)
        to = at if SQUARE else latent.to(tl.int64) * d_in + column
        u = w
        if not TIED:
            u = tl.load(enc + to, mask=reads, other=0.0, eviction_policy="evict_first")
        to_dec, to_enc, to_bias, radial, fired = latent_gradients(
            (order, offsets), (values, gradient, error_rows), (errors, inputs),
            (first, sums, scalars), (slots, more_dec, more_enc, more_scalars, slope),
            latent, column, inside, reads, factor, d, d_in, k, GROUPS, PAIRS, EXTRA, SQUARE, TIED,
        )  # fmt: skip
        through += to_bias * u
        to_dec -= radial * w
        if CLIP:
            share = tl.load(clip)
            to_dec *= share
            to_enc *= share
            to_bias *= share
        if DECAY:
            w *= tl.load(rates + 2)
            u *= tl.load(rates + 2)
        for_dec, for_enc = _words(dec_m, (step, seed, first_latent, every), latent, chunk, COLUMNS)
        w = _adam(w, to_dec, (dec_m, dec_v), for_dec, at, inside, rates, B1, B2, EPS)
        _store_row(dec, dec_copy, at, w, inside)
        if not TIED:
            u = _adam(u, to_enc, (enc_m, enc_v), for_enc, to, reads, rates, B1, B2, EPS)
            _store_row(enc, enc_copy, to, u, reads)
        tl.store(norms + latent * chunks + chunk, tl.sum(tl.where(inside, w * w, 0.0)))
        if chunk == 0:
            state = (bias, bias_m, bias_v, bias_copy, since_fired)
            _step_scalars(state, latent, m, to_bias, fired, batch, rates, B1, B2, EPS)
        latent += 1
    tl.store(to_input + group.to(tl.int64) * d_in + column, through, mask=reads)


@triton.jit
@no_type_check
def scale_kernel(norms, scale, m, CHUNKS: tl.constexpr, BLOCK: tl.constexpr):
    """The factor that makes each row of the decoder a unit vector."""
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
    clip,
    factor,
    n,
    B1: tl.constexpr,
    B2: tl.constexpr,
    EPS: tl.constexpr,
    CLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adam on numbers with gradient `factor * gradient - minus`, times `clip` if given."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    g = factor * tl.load(gradient + at, mask=inside, other=0.0)
    g -= tl.load(minus + at, mask=inside, other=0.0)
    if CLIP:
        g *= tl.load(clip)
    value = tl.load(p + at, mask=inside, other=0.0)
    value = _adam(value, g, (moments_m, moments_v), 0, at, inside, rates, B1, B2, EPS)
    tl.store(p + at, value, mask=inside)


def tokens_since(
    values: Float[Tensor, "*entry"],
    indices: Int[Tensor, "*entry"],
    before: Int[Tensor, " d_sae"],
    batch: int,
) -> Int[Tensor, " d_sae"]:
    """Tokens since each latent last fired, after a batch with these codes."""
    silent = torch.where(values > 0, 0, torch.iinfo(before.dtype).max).flatten()
    return (before + batch).scatter_reduce(0, indices.flatten().long(), silent, "amin")


def advance_rates(weights: Weights, adam: AdamRules, rates: Float[Tensor, " 3"]) -> None:
    """Count a step; its size, the root of the second moment's correction, and the decay if any."""
    # In float64: in float32, 1 - 0.999 has five digits.
    b1, b2 = adam.betas
    weights.step.add_(1)
    torch.div(weights.lr, 1 - b1**weights.step, out=rates[:1])
    torch.sqrt(1 - b2**weights.step, out=rates[1:2])
    if adam.weight_decay:
        rates[2:] = 1 - weights.lr * adam.weight_decay


def move_parameter(
    p: Parameter,
    gradient: Float[Tensor, "*shape"],
    minus: Float[Tensor, "*shape"],
    factor: float | int,
    rates: Float[Tensor, " 3"],
    share: Float[Tensor, " 1"] | None,
    adam: AdamRules,
) -> None:
    """Update a parameter outside of the latents, not its copy, by Adam; a matrix decays.

    Its gradient is `factor * gradient - minus`, times `share` if given.
    """
    n = gradient.numel()
    if adam.weight_decay and gradient.ndim > 1:
        p.value.mul_(rates[2])
    vector_kernel[(ceil_div(n, 256),)](
        p.value, p.m, p.v, gradient, minus, rates, rates if share is None else share, factor, n,
        CLIP=share is not None, BLOCK=256, **adam.constants,
    )  # fmt: skip

# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
# pyright: reportMissingParameterType=false, reportCallIssue=false
"""Token-major kernels: the sparse decode, the gradient of its codes, and both at once.

Columns are cut into chunks and all tokens of a chunk are done before the next, so that the part of
the dictionary that is gathered from stays in the cache.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.sizes import ceil_div, power_of_two

TILE = 4096
"""Gathered numbers that a warp holds in registers."""


@triton.jit
@no_type_check
def _decode_kernel(
    values,
    indices,
    starts,
    W,
    out,
    batch,
    d,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    token = tl.program_id(0) % batch
    column = (tl.program_id(0) // batch) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < d
    total = tl.zeros([COLUMNS], tl.float32)
    entry = tl.load(starts + token)
    stop = tl.load(starts + token + 1)
    while entry < stop:
        at = entry + tl.arange(0, ROWS)
        latent = tl.load(indices + at, mask=at < stop, other=0).to(tl.int64)
        value = tl.load(values + at, mask=at < stop, other=0.0).to(tl.float32)
        there = (at < stop)[:, None] & inside[None, :]
        atoms = tl.load(W + latent[:, None] * d + column[None, :], mask=there, other=0.0)
        total += tl.sum(value[:, None] * atoms.to(tl.float32), 0)
        entry += ROWS
    tl.store(out + token.to(tl.int64) * d + column, total, mask=inside)


@triton.jit
@no_type_check
def _dot_kernel(
    grad,
    indices,
    starts,
    W,
    out,
    d: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    token = tl.program_id(0)
    entry = tl.load(starts + token)
    stop = tl.load(starts + token + 1)
    while entry < stop:
        at = entry + tl.arange(0, ROWS)
        latent = tl.load(indices + at, mask=at < stop, other=0).to(tl.int64)
        total = tl.zeros([ROWS], tl.float32)
        for first in range(0, d, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            there = (at < stop)[:, None] & (column < d)[None, :]
            atoms = tl.load(W + latent[:, None] * d + column[None, :], mask=there, other=0.0)
            g = tl.load(grad + token.to(tl.int64) * d + column, mask=column < d, other=0.0)
            total += tl.sum(atoms.to(tl.float32) * g.to(tl.float32)[None, :], 1)
        tl.store(out + at, total, mask=at < stop)
        entry += ROWS


@triton.jit
@no_type_check
def _residual_kernel(
    values,
    indices,
    scale,
    W,
    bias,
    x,
    residual,
    errors,
    dots,
    batch,
    d,
    k: tl.constexpr,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """One chunk of one token: x_hat - x, its square, and its product with each row of W."""
    chunks = (d + COLUMNS - 1) // COLUMNS
    token = (tl.program_id(0) % batch).to(tl.int64)
    chunk = tl.program_id(0) // batch
    slot = tl.arange(0, K)
    # Masks that are known to be true cost nothing.
    kept = (slot < k) | (k == K)
    latent = tl.load(indices + token * k + slot, mask=kept, other=0).to(tl.int64)
    value = tl.load(values + token * k + slot, mask=kept, other=0.0)
    value *= tl.load(scale + latent, mask=kept, other=0.0)
    column = chunk * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < d) | EVEN
    there = kept[:, None] & inside[None, :]
    atoms = tl.load(W + latent[:, None] * d + column[None, :], mask=there, other=0.0)
    target = tl.load(x + token * d + column, mask=inside, other=0.0).to(tl.float32)
    error = tl.load(bias + column, mask=inside, other=0.0) - target
    error += tl.sum(value[:, None] * atoms.to(tl.float32), 0)
    tl.store(residual + token * d + column, error, mask=inside)
    tl.store(errors + token * chunks + chunk, tl.sum(error * error))
    dot = tl.sum(atoms.to(tl.float32) * error[None, :], 1)
    tl.store(dots + (token * chunks + chunk) * k + slot, dot, mask=kept)


@triton.jit
@no_type_check
def _code_gradient_kernel(
    values,
    indices,
    scale,
    dots,
    gradient,
    factor,
    n,
    k: tl.constexpr,
    CHUNKS: tl.constexpr,
    SIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sum of the chunks' products, with the atom's scale; none where the rectifier is off."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    kept = at < n
    first = (at // k).to(tl.int64) * (CHUNKS * k) + at % k
    total = tl.zeros([BLOCK], tl.float32)
    for chunk in range(CHUNKS):
        total += tl.load(dots + first + chunk * k, mask=kept, other=0.0)
    total *= tl.load(scale + tl.load(indices + at, mask=kept, other=0), mask=kept, other=0.0)
    if not SIGNED:
        total = tl.where(tl.load(values + at, mask=kept, other=0.0) > 0, total, 0.0)
    tl.store(gradient + at, total * factor, mask=kept)


def decode(
    values: Float[Tensor, " entry"],
    indices: Int[Tensor, " entry"],
    starts: Int[Tensor, " batch_1"],
    W: Float[Tensor, "d_sae d_out"],
) -> Float[Tensor, "batch d_out"]:
    """`z @ W` in float32 sums and W's type; `starts` has where each row begins, and the end."""
    batch, d = len(starts) - 1, W.shape[1]
    out = W.new_empty(batch, d)
    columns = min(256, power_of_two(d))
    grid = (batch * ceil_div(d, columns),)
    if batch and d:
        _decode_kernel[grid](
            values, indices, starts, W, out, batch, d, COLUMNS=columns, ROWS=16, num_warps=4
        )
    return out


def dot_atoms(
    grad: Float[Tensor, "batch d_out"],
    indices: Int[Tensor, " entry"],
    starts: Int[Tensor, " batch_1"],
    W: Float[Tensor, "d_sae d_out"],
) -> Float[Tensor, " entry"]:
    """For every entry, the product of its row of `grad` and its atom, in float32."""
    batch, d = grad.shape
    out = grad.new_empty(len(indices), dtype=torch.float32)
    columns = min(256, power_of_two(d))
    if batch and d:
        _dot_kernel[(batch,)](
            grad, indices, starts, W, out, d=d, COLUMNS=columns, ROWS=16, num_warps=4
        )
    return out


class Residual(NamedTuple):
    """What `decode_residual` writes, all of it anew.

    Attributes:
        residual: `[batch d_in]`, x_hat - x.
        errors: `[batch chunk]`, its squared norm in pieces.
        dots: `[batch chunk k]`, its products with W's rows in pieces, as `errors` has them.
        gradient: `[batch k]`, of the codes.
    """

    residual: Float[Tensor, "batch d_in"]
    errors: Float[Tensor, "batch chunk"]
    dots: Float[Tensor, "batch chunk k"]
    gradient: Float[Tensor, "batch k"]

    @classmethod
    def empty(cls, x: Float[Tensor, "batch d_in"], k: int) -> "Residual":
        """Room for the residual of x, in x's type, and float32 for the rest."""
        batch, d = x.shape
        chunks = ceil_div(d, residual_columns(d, k))
        errors = x.new_empty(batch, chunks, dtype=torch.float32)
        dots, gradient = errors.new_empty(batch, chunks, k), errors.new_empty(batch, k)
        return cls(torch.empty_like(x), errors, dots, gradient)


def residual_columns(d: int, k: int) -> int:
    """The columns of a chunk: as many as leave room for k atoms in registers."""
    K = power_of_two(k)
    return min(256, max(16, TILE // K), max(16, power_of_two(d)))


def decode_residual(
    x: Float[Tensor, "batch d_in"],
    values: Float[Tensor, "batch k"],
    indices: Int[Tensor, "batch k"],
    W: Float[Tensor, "d_sae d_in"],
    scale: Float[Tensor, " d_sae"],
    bias: Float[Tensor, " d_in"],
    *,
    factor: float,
    signed: bool,
    out: Residual,
) -> None:
    """Decode with atoms `scale * W`, and differentiate `factor / 2 * ||x_hat - x||^2` by the codes.

    Gathers each atom once. `signed` codes have a gradient everywhere, others where positive.
    """
    batch, k = values.shape
    d = x.shape[1]
    K, columns = power_of_two(k), residual_columns(d, k)
    _residual_kernel[(batch * ceil_div(d, columns),)](
        values, indices, scale, W, bias, x, *out[:3], batch, d,
        k=k, K=K, COLUMNS=columns, EVEN=d % columns == 0,
        # One warp needs no barrier, and does not load an index once for each of several warps.
        num_warps=max(1, K * columns // TILE),
    )  # fmt: skip
    n, block = values.numel(), 256
    _code_gradient_kernel[(ceil_div(n, block),)](
        values, indices, scale, out.dots, out.gradient, factor, n,
        k=k, CHUNKS=out.dots.shape[1], SIGNED=signed, BLOCK=block,
    )  # fmt: skip

# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""Token-major kernels: the sparse decode, and the gradient of its codes.

Columns are cut into chunks, and all tokens of a chunk are done before the next chunk, so the
gathered part of the dictionary stays in cache.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.sizes import ceil_div, power_of_two


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


def decode(
    values: Float[Tensor, " entry"],
    indices: Int[Tensor, " entry"],
    starts: Int[Tensor, " batch_1"],
    W: Float[Tensor, "d_sae d_out"],
) -> Float[Tensor, "batch d_out"]:
    """`z @ W`, summed in float32, in W's dtype; `starts` are the rows' starts, and the end."""
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

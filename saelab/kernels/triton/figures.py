# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""The figures of a step, with one read of its rows and of its codes."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from saelab.kernels.sizes import ceil_div

BLOCK, BLOCKS = 1024, 8
"""Numbers that a program adds at once, and how often it does."""


@triton.jit
@no_type_check
def _parts_kernel(
    rows, point, values, parts, n, d, n_values, BLOCK: tl.constexpr, BLOCKS: tl.constexpr
):
    """A share of the squared distance, and behind all of these, of the number of active codes."""
    first = tl.program_id(0).to(tl.int64) * BLOCK * BLOCKS + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    active = tl.zeros([BLOCK], tl.int32)
    for block in range(BLOCKS):
        at = first + block * BLOCK
        value = tl.load(rows + at, mask=at < n, other=0.0).to(tl.float32)
        value -= tl.load(point + at % d, mask=at < n, other=0.0).to(tl.float32)
        total += value * value
        active += (tl.load(values + at, mask=at < n_values, other=0.0) != 0).to(tl.int32)
    tl.store(parts + tl.program_id(0), tl.sum(total))
    tl.store(parts + tl.num_programs(0) + tl.program_id(0), tl.sum(active).to(tl.float32))


@triton.jit
@no_type_check
def _add_kernel(sums, parts, n_parts, mse_sum, n_rows, loss, BLOCK: tl.constexpr):
    """Add what the parts sum to, in float64."""
    distance = tl.zeros([BLOCK], tl.float64)
    active = tl.zeros([BLOCK], tl.float64)
    first = tl.full([], 0, tl.int32)
    while first < n_parts:
        at = first + tl.arange(0, BLOCK)
        distance += tl.load(parts + at, mask=at < n_parts, other=0.0).to(tl.float64)
        active += tl.load(parts + n_parts + at, mask=at < n_parts, other=0.0).to(tl.float64)
        first += BLOCK
    error = tl.load(mse_sum).to(tl.float32) * n_rows
    tl.store(sums, tl.load(sums) + error.to(tl.float64))
    tl.store(sums + 1, tl.load(sums + 1) + tl.sum(distance))
    tl.store(sums + 2, tl.load(sums + 2) + tl.sum(active))
    tl.store(sums + 3, tl.load(sums + 3) + tl.load(loss).to(tl.float64))


def add_by_kernels_(
    sums: Float[Tensor, " 4"],
    rows: Float[Tensor, "row d_in"],
    point: Float[Tensor, " d_in"],
    values: Float[Tensor, "*entry"],
    mse_sum: Float[Tensor, ""],
    loss: Float[Tensor, ""],
) -> None:
    """See `saelab.kernels.torch.figures`."""
    n, n_values = rows.numel(), values.numel()
    n_parts = max(1, ceil_div(max(n, n_values), BLOCK * BLOCKS))
    parts = rows.new_empty(2 * n_parts, dtype=torch.float32)
    _parts_kernel[(n_parts,)](
        rows.contiguous(), point.contiguous(), values.detach().contiguous(), parts, n,
        rows.shape[1], n_values, BLOCK=BLOCK, BLOCKS=BLOCKS,
    )  # fmt: skip
    _add_kernel[(1,)](sums, parts, n_parts, mse_sum.detach(), len(rows), loss.detach(), BLOCK=BLOCK)

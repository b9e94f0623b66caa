# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""The rows' squared distances from a point, summed in one read."""

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
def _distance_kernel(rows, point, sums, n, d, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK * BLOCKS + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for block in range(BLOCKS):
        at = first + block * BLOCK
        value = tl.load(rows + at, mask=at < n, other=0.0).to(tl.float32)
        value -= tl.load(point + at % d, mask=at < n, other=0.0).to(tl.float32)
        total += value * value
    tl.store(sums + tl.program_id(0), tl.sum(total))


def squared_distance_(
    rows: Float[Tensor, "row d_in"], point: Float[Tensor, " d_in"]
) -> Float[Tensor, ""]:
    """See `saelab.kernels.torch.distance`."""
    n = rows.numel()
    sums = rows.new_empty(max(1, ceil_div(n, BLOCK * BLOCKS)), dtype=torch.float32)
    _distance_kernel[(len(sums),)](
        rows.contiguous(), point.contiguous(), sums, n, rows.shape[1], BLOCK=BLOCK, BLOCKS=BLOCKS
    )
    return sums.sum(dtype=torch.float64)

# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""What a fused step's decode computes: the errors, and the gradient of the codes."""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.sizes import ceil_div, power_of_two

TILE = 4096
"""Gathered numbers that a warp holds in registers."""


class Residual(NamedTuple):
    """Errors x_hat - x after each group of a row's codes, and their gradients in the loss.

    Attributes:
        residual: `[batch * group d_in]`, sums of the errors from each group on, with their weights
            in the loss.
        errors: `[batch chunk group]`, squared norm of each group's error, in parts.
        dots: `[chunk entry]`, products of the residual's and W's rows, in parts.
        gradient: `[entry]`, gradient of the codes.
    """

    residual: Float[Tensor, "batch_group d_in"]
    errors: Float[Tensor, "batch chunk group"]
    dots: Float[Tensor, "chunk entry"]
    gradient: Float[Tensor, " entry"]

    @classmethod
    def empty(
        cls, x: Float[Tensor, "batch d_in"], n: int, *, columns: int, groups: int = 1
    ) -> "Residual":
        """Memory for n codes of the rows x; the residual has x's dtype, the rest is float32."""
        batch, d = x.shape
        chunks = ceil_div(d, columns)
        errors = x.new_empty(batch, chunks, groups, dtype=torch.float32)
        dots = errors.new_empty(chunks, n)
        return cls(x.new_empty(batch * groups, d), errors, dots, errors.new_empty(n))


def chunk_columns(d: int) -> int:
    """The columns of a chunk of rows of width d."""
    return min(256, max(16, power_of_two(d)))


def tile_columns(d: int, k: int) -> int:
    """The columns of a chunk: as many as leave room for k atoms in registers."""
    return min(chunk_columns(d), max(16, TILE // power_of_two(k)))


def tile_warps(k: int, columns: int) -> int:
    """Number of warps for k atoms of a chunk.

    A single warp needs no barrier, and loads each index only once.
    """
    return max(1, power_of_two(k) * columns // TILE)


@triton.jit
@no_type_check
def _gradient_kernel(
    values,
    indices,
    scale,
    dots,
    gradient,
    factor,
    n,
    CHUNKS: tl.constexpr,
    SIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sum of the chunks' products, times the atom's scale; 0 where the rectifier is off."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    kept = at < n
    total = tl.zeros([BLOCK], tl.float32)
    for chunk in range(CHUNKS):
        # The products of all chunks may be more than 32 bits can number.
        place = at + tl.cast(chunk, tl.int64) * n
        total += tl.load(dots + place, mask=kept, other=0.0)
    total *= tl.load(scale + tl.load(indices + at, mask=kept, other=0), mask=kept, other=0.0)
    if not SIGNED:
        total = tl.where(tl.load(values + at, mask=kept, other=0.0) > 0, total, 0.0)
    tl.store(gradient + at, total * factor, mask=kept)


def code_gradients(
    values: Float[Tensor, "*entry"],
    indices: Int[Tensor, "*entry"],
    scale: Float[Tensor, " d_sae"],
    out: Residual,
    *,
    factor: float,
    signed: bool,
) -> None:
    """Compute the gradient of the codes from their dots.

    Args:
        values: values of the codes.
        indices: latents of the codes.
        scale: scale of each atom.
        out: contains the dots, and receives the gradient.
        factor: the loss's gradient by x_hat is `factor` times the residual.
        signed: whether codes have a gradient everywhere, or only where positive.
    """
    n, block = values.numel(), 256
    _gradient_kernel[(ceil_div(n, block),)](
        values, indices, scale, out.dots, out.gradient, factor, n,
        CHUNKS=len(out.dots), SIGNED=signed, BLOCK=block,
    )  # fmt: skip

# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""All steps of a row's matching pursuit in one kernel, with its correlations on the chip.

If the atoms' cosines fit in memory (a Gram matrix, arXiv 2506.03093 section 3), a step changes a
row's correlations by its value times one row of cosines. A program keeps the correlations of one
row of the batch, in float32, from the first step to the last, and reads one row of cosines per
step. So no step writes `batch x d_sae` numbers or multiplies by all atoms again.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.sizes import power_of_two
from saelab.kernels.triton.step.aux_k import product_

PER_WARP = 512
"""Correlations per warp, if the number of warps allows: a program has at most 32."""
MAX_REGISTERS = 64
"""Largest number of registers per thread, so that a multiprocessor holds 32 warps: one program of
the widest kind."""
MIN_COLUMNS = 64
"""Columns of a program at least, so that all lanes of a warp agree on a value.

With at most one product per lane the compiler joins a lane's own product to the first addition
between lanes: lanes i and j then compute a * b + round(c * d) and round(a * b) + c * d. Near zero
one goes on and the other stops, and what they still exchange is of no step."""
CHUNK_BYTES = 2**28
"""Bytes of first correlations in memory at a time."""


@triton.jit
@no_type_check
def _steps_kernel(
    correlations, scales, cosines, atoms, residual, values, indices, threshold, n_steps, m, d,
    M: tl.constexpr, D: tl.constexpr, STOPS: tl.constexpr,
):  # fmt: skip
    """The steps of one row, until it stops; later entries are not changed."""
    token = tl.program_id(0).to(tl.int64)
    latent = tl.arange(0, M)
    column = tl.arange(0, D)
    inside = column < d
    left = tl.load(residual + token * d + column, mask=inside, other=0.0)
    c = tl.load(correlations + token * m + latent, mask=latent < m, other=float("-inf"))
    c = c.to(tl.float32) * tl.load(scales + token)
    # A row with NaN takes one step, which leaves it NaN.
    c = tl.where(c == c, c, float("-inf"))
    step = 0
    while step < n_steps:
        chosen = tl.min(tl.where(c == tl.max(c), latent, M))
        # Requested first, so that it is loaded while the value is computed.
        row = tl.load(cosines + chosen.to(tl.int64) * m + latent, mask=latent < m, other=0.0)
        w = tl.load(atoms + chosen.to(tl.int64) * d + column, mask=inside, other=0.0)
        value = tl.sum(left * w)
        value = tl.where(value <= 0, 0.0, value)
        if STOPS:
            value = tl.where(tl.sqrt(tl.sum(left * left)) <= threshold, 0.0, value)
        tl.store(values + token * n_steps + step, value)
        tl.store(indices + token * n_steps + step, chosen.to(tl.int64))
        left -= value * w
        c -= value * row.to(tl.float32)
        # A stopped row would choose the same atom again.
        step = tl.where(value > 0, step + 1, n_steps)
    tl.store(residual + token * d + column, left, mask=inside)


def pursue_rows(
    residual: Float[Tensor, "batch d_in"],
    atoms: Float[Tensor, "d_sae d_in"],
    coarse: Float[Tensor, "d_sae d_in"],
    codes: tuple[Float[Tensor, "batch n_steps"], Int[Tensor, "batch n_steps"]],
    threshold: float | int,
) -> None:
    """All steps of every row, in place; entries after a row stops are not changed.

    Atoms are chosen by correlations. They start from a product in `coarse`'s dtype and are then
    updated in float32; rows are scaled before the product, so float16 suffices for any row. Values
    are exact for the chosen atoms.

    Args:
        residual: float32, the rows; the steps subtract from it.
        atoms: float32, at most `GRAM_LATENTS`.
        coarse: the same atoms in the dtype of the products.
        codes: values and indices (int64), zeros.
        threshold: rows of at most this norm take no step; 0 for no limit.
    """
    m, d = atoms.shape
    cosines = coarse @ coarse.T
    rows = max(1, CHUNK_BYTES // (4 * m))
    first = residual.new_empty(min(rows, len(residual)), m)
    for left, values, indices in zip(*(t.split(rows) for t in (residual, *codes)), strict=True):
        if not values.numel():
            continue
        scales = left.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        product_((left / scales).to(coarse.dtype), coarse.T, first[: len(left)])
        M = max(16, power_of_two(m))
        _steps_kernel[(len(left),)](
            first, scales, cosines, atoms, left, values, indices, float(threshold),
            values.shape[1], m, d, M=M, D=max(MIN_COLUMNS, power_of_two(d)), STOPS=threshold > 0,
            num_warps=min(32, max(1, M // PER_WARP)), maxnreg=MAX_REGISTERS,
        )  # fmt: skip

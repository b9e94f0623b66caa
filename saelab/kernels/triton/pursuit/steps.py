# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""Matching pursuit's steps: find each row's best atom, subtract it; and the backward pass."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.sizes import power_of_two
from saelab.kernels.torch.affine import LatentSums
from saelab.kernels.triton.select.rows import read, segment_maxima

WIDTH = 1024
"""Numbers of a row that a warp holds, so that the row is read once."""
ROWS_BYTES = 2**28
"""Bytes that the backward pass holds, at a time, of each step's gradient for its atom."""


@triton.jit
@no_type_check
def _first_of_largest(x, position, valid):
    """The position of the largest entry; of equal entries the first."""
    x = tl.where(valid, x, float("-inf"))
    at_best = valid & (x == tl.max(x))
    return tl.min(tl.where(at_best, position, 0x7FFFFFFF))


@triton.jit
@no_type_check
def _step_kernel(
    correlations,
    maxima,
    atoms,
    residual,
    coarse,
    values,
    indices,
    threshold,
    step,
    n_steps,
    m,
    n,
    d,
    W: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    STOPS: tl.constexpr,
):
    """One step of one row: the atom with the largest correlation, and the residual without it."""
    token = tl.program_id(0).to(tl.int64)
    segment = tl.arange(0, N)
    best = tl.load(maxima + token * n + segment, mask=segment < n, other=0.0).to(tl.float32)
    chosen = tl.minimum(_first_of_largest(best, segment, segment < n), n - 1)
    at = chosen * W + tl.arange(0, W)
    inside = at < m
    chosen = _first_of_largest(read(correlations + token * m, at, inside, False), at, inside)  # noqa: FBT003
    # A row with NaN has no largest entry.
    chosen = tl.minimum(chosen, m - 1)
    column = tl.arange(0, D)
    inside = column < d
    left = tl.load(residual + token * d + column, mask=inside, other=0.0)
    w = tl.load(atoms + chosen.to(tl.int64) * d + column, mask=inside, other=0.0)
    value = tl.sum(left * w)
    value = tl.where(value <= 0, 0.0, value)
    if STOPS:
        value = tl.where(tl.sqrt(tl.sum(left * left)) <= threshold, 0.0, value)
    left -= value * w
    tl.store(residual + token * d + column, left, mask=inside)
    tl.store(coarse + token * d + column, left, mask=inside)
    tl.store(values + token * n_steps + step, value)
    tl.store(indices + token * n_steps + step, chosen)


@triton.jit
@no_type_check
def _back_kernel(
    residual,
    adjoint,
    values,
    indices,
    grad_values,
    atoms,
    to_atoms,
    slopes,
    factor,
    n_steps,
    d,
    D: tl.constexpr,
    ALONE: tl.constexpr,
):
    """All steps of one row backwards: the gradient of each step's atom, and that of the row.

    If ALONE holds, values have no gradient of their own, and `slopes` receives `factor` times that
    which their use has.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, D)
    inside = column < d
    left = tl.load(residual + token * d + column, mask=inside, other=0.0)
    back = tl.load(adjoint + token * d + column, mask=inside, other=0.0)
    step = n_steps - 1
    while step >= 0:
        value = tl.load(values + token * n_steps + step)
        atom = tl.load(indices + token * n_steps + step)
        w = tl.load(atoms + atom * d + column, mask=inside, other=0.0)
        # The gradient of the value itself, minus that of subtracting it from the residual.
        slope = -tl.sum(back * w)
        if not ALONE:
            slope += tl.load(grad_values + token * n_steps + step)
        slope = tl.where(value > 0, slope, 0.0)
        if ALONE:
            tl.store(slopes + token * n_steps + step, factor * slope)
        left += value * w
        place = (token * n_steps + step) * d + column
        tl.store(to_atoms + place, slope * left - value * back, mask=inside)
        back += slope * w
        step -= 1
    tl.store(adjoint + token * d + column, back, mask=inside)


def _row_shape(d: int) -> dict[str, int]:
    D = max(16, power_of_two(d))
    return {"D": D, "num_warps": min(16, max(1, D // WIDTH))}


def take_step(
    correlations: Float[Tensor, "batch d_sae"],
    atoms: Float[Tensor, "d_sae d_in"],
    residual: Float[Tensor, "batch d_in"],
    coarse: Float[Tensor, "batch d_in"],
    codes: tuple[Float[Tensor, "batch n_steps"], Int[Tensor, "batch n_steps"]],
    step: int,
    threshold: float | int,
) -> None:
    """One greedy step of every row, in place.

    Args:
        correlations: correlations by which atoms are chosen; of equal ones the first.
        atoms: float32 atoms, which give the values.
        residual: float32; the step subtracts from it.
        coarse: receives a copy of the residual, in the dtype of the correlations.
        codes: values and indices (int64); column `step` is written.
        step: number of the step, from 0.
        threshold: rows of at most this norm take no step; 0 for no limit.
    """
    (batch, m), d = correlations.shape, atoms.shape[1]
    maxima, W = segment_maxima(correlations, by_magnitude=False)
    n = maxima.shape[1]
    _step_kernel[(batch,)](
        correlations, maxima, atoms, residual, coarse, *codes, float(threshold), step,
        codes[0].shape[1], m, n, d, W=W, N=power_of_two(n), STOPS=threshold > 0, **_row_shape(d),
    )  # fmt: skip


def slopes_back(
    residual: Float[Tensor, "batch d_in"],
    adjoint: Float[Tensor, "batch d_in"],
    codes: tuple[Float[Tensor, "batch n_steps"], Int[Tensor, "batch n_steps"]],
    atoms: Float[Tensor, "d_sae d_in"],
    factor: float,
    out: tuple[Float[Tensor, "entry d_in"], Float[Tensor, " entry"]],
) -> None:
    """The gradients of each step's atom and value, where values matter by the residual alone.

    Args:
        residual: what the steps left; becomes the rows.
        adjoint: its gradient; becomes that of the rows.
        codes: values and indices.
        atoms: float32.
        factor: of the values' gradients.
        out: receives the gradients of each step's atom, and of its value.
    """
    (n_steps, d), (to_atoms, slopes) = (codes[0].shape[1], atoms.shape[1]), out
    _back_kernel[(len(residual),)](
        residual, adjoint, *codes, slopes, atoms, to_atoms, slopes, factor, n_steps, d,
        ALONE=True, **_row_shape(d),
    )  # fmt: skip


def pursue_back(
    residual: Float[Tensor, "batch d_in"],
    adjoint: Float[Tensor, "batch d_in"],
    codes: tuple[Float[Tensor, "batch n_steps"], Int[Tensor, "batch n_steps"]],
    grad_values: Float[Tensor, "batch n_steps"],
    atoms: Float[Tensor, "d_sae d_in"],
) -> Float[Tensor, "d_sae d_in"]:
    """The atoms' gradient; `adjoint` is the last residual's gradient and becomes that of x.

    Rows are processed in parts, so memory does not grow with batch times steps.
    """
    n_steps, d = codes[0].shape[1], atoms.shape[1]
    total = torch.zeros_like(atoms)
    size = max(1, ROWS_BYTES // max(1, 4 * n_steps * d))
    pieces = (residual, adjoint, *codes, grad_values)
    for rest, back, values, indices, grads in zip(*(t.split(size) for t in pieces), strict=True):
        if not values.numel():
            continue
        to_atoms = rest.new_empty(values.numel(), d)
        _back_kernel[(len(rest),)](
            rest, back, values, indices, grads, atoms, to_atoms, grads, 1.0, n_steps, d,
            ALONE=False, **_row_shape(d),
        )  # fmt: skip
        entries = torch.arange(values.numel(), device=rest.device)
        sums = LatentSums(indices.flatten(), entries, torch.ones_like(values).flatten(), len(atoms))
        total += sums(to_atoms)
    return total

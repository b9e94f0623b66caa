"""Matching pursuit: pick the atom that explains most of the residual, subtract it, repeat.

Source: arXiv 2506.03093. The dictionary is tied, its rows have unit norm, and values are >= 0.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from saelab.kernels.cuda import runs_triton
from saelab.pursuit.steps import PursuitTask, fastest_pursuit
from saelab.types import SparseCodes


@dataclass(frozen=True)
class Pursuit:
    """One entry per step, in the order of the steps.

    Attributes:
        values: coefficient of the atom subtracted in each step, >= 0; 0 once the row has stopped.
        indices: the atom of each step; an atom may occur more than once in a row. If the value is
            0, the index is valid but has no meaning.
        residual: `x - sum of values * atoms`.
    """

    values: Float[Tensor, "batch n_steps"]
    indices: Int[Tensor, "batch n_steps"]
    residual: Float[Tensor, "batch d_in"]


def matching_pursuit(
    x: Float[Tensor, "batch d_in"],
    atoms: Float[Tensor, "d_sae d_in"],
    n_steps: int,
    *,
    residual_threshold: float | int = 0.0,
) -> Pursuit:
    """Up to `n_steps` greedy steps for each row (arXiv 2506.03093).

    A step takes the atom with the largest signed correlation to the residual. A row stops when this
    correlation is not positive, or when its residual's norm is at most `residual_threshold` before
    the step; a threshold of 0 never stops a row. The first t steps are those of a shorter pursuit.

    It is differentiable in `x` and `atoms` through both `values` and `residual`, with the choice of
    atoms held fixed. The backward pass stores one residual, not one per step. It works in float32,
    or in float64 if either input is float64. Under autocast, only the products that choose atoms
    have autocast's dtype. If a GPU updates correlations by the Gram matrix (up to 32768 latents, if
    that is faster), that product is float16, which rounds less than bfloat16. If correlations of
    two atoms are equal up to rounding, either may be chosen; the value is exact for the chosen
    atom.

    Args:
        x: centred by the caller.
        atoms: rows of unit norm; above norm sqrt 2 the residual would grow.
        n_steps: largest number of steps per row.
        residual_threshold: in the units of `x`.
    """
    dtype = torch.promote_types(torch.promote_types(x.dtype, atoms.dtype), torch.float32)
    device = x.device.type
    coarse = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
    with torch.autocast(device, enabled=False):
        return Pursuit(
            *_Pursue.apply(x.to(dtype), atoms.to(dtype), n_steps, residual_threshold, coarse)
        )


def merged(pursuit: Pursuit, d_sae: int) -> SparseCodes:
    """A pursuit's codes with every atom at most once per row; see `merged_codes`."""
    return merged_codes(SparseCodes(pursuit.values, pursuit.indices, d_sae))


def merged_codes(codes: SparseCodes) -> SparseCodes:
    """The same codes with every atom at most once per row; differentiable in the values.

    An atom's values are summed at the entry where the row first chose it; its later entries keep
    the index and have value 0. So entries stay in the order of first choice.
    """
    indices, order = codes.indices.sort(dim=1, stable=True)
    values = codes.values.gather(1, order)
    position = torch.arange(indices.shape[1], device=indices.device)
    repeated = torch.zeros_like(indices, dtype=torch.bool)
    repeated[:, 1:] = indices[:, 1:] == indices[:, :-1]
    # In sorted order: where each run of equal indices begins.
    begins = position.where(~repeated, 0).cummax(dim=1).values
    owner = order.gather(1, begins)
    summed = torch.zeros_like(values).scatter_add(1, owner, values)
    return SparseCodes(summed, codes.indices, codes.d_sae)


class _Pursue(torch.autograd.Function):
    """r' = r - c w with c = ReLU(<r, w>); the backward pass recovers each r as r' + c w."""

    @staticmethod
    @override
    def forward(
        ctx: Any,
        x: Float[Tensor, "batch d_in"],
        atoms: Float[Tensor, "d_sae d_in"],
        n_steps: int,
        threshold: float | int,
        coarse: torch.dtype,
    ) -> tuple[
        Float[Tensor, "batch n_steps"],
        Int[Tensor, "batch n_steps"],
        Float[Tensor, "batch d_in"],
    ]:
        residual = x.clone()
        values = x.new_zeros(len(x), n_steps)
        indices = torch.zeros(len(x), n_steps, dtype=torch.long, device=x.device)
        task = PursuitTask(residual, atoms, (values, indices), threshold, coarse)
        taken = fastest_pursuit(task)(task)
        ctx.mark_non_differentiable(indices)
        ctx.save_for_backward(atoms, values[:, :taken], indices[:, :taken], residual)
        return values, indices, residual

    @staticmethod
    @override
    @once_differentiable
    def backward(  # pyrefly: ignore[bad-override]
        ctx: Any,
        grad_values: Float[Tensor, "batch n_steps"],
        _: Tensor | None,
        grad_residual: Float[Tensor, "batch d_in"],
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        atoms, values, indices, residual = ctx.saved_tensors
        needs_x, needs_atoms = ctx.needs_input_grad[:2]
        residual = residual.clone()
        # Kernels write in place and ignore strides: a later copy would lose their results.
        adjoint = grad_residual.clone(memory_format=torch.contiguous_format)
        if runs_triton(residual):
            from saelab.kernels.triton.pursuit.steps import pursue_back

            codes, slopes = (values.contiguous(), indices.contiguous()), grad_values.contiguous()
            grad_atoms = pursue_back(residual, adjoint, codes, slopes, atoms.contiguous())
            return adjoint if needs_x else None, grad_atoms, None, None, None
        grad_atoms = torch.zeros_like(atoms) if needs_atoms else None
        for t in reversed(range(values.shape[1])):
            c, w = values[:, t, None], atoms[indices[:, t]]
            # The gradient of the value itself, minus that of subtracting it from the residual.
            slope = grad_values[:, t, None] - (adjoint * w).sum(1, keepdim=True)
            slope = slope.where(c > 0, 0)
            if grad_atoms is not None:
                residual.addcmul_(c, w)
                grad_atoms.index_add_(0, indices[:, t], slope * residual - c * adjoint)
            adjoint.addcmul_(slope, w)
        return adjoint if needs_x else None, grad_atoms, None, None, None

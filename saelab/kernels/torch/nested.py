"""The error of every budget from one set of sorted codes, without one reconstruction each."""

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from saelab.config import UsageError
from saelab.kernels.torch.gather import sparse_decode
from saelab.types import SparseCodes


def nested_errors(
    x: Float[Tensor, "batch d_out"],
    values: Float[Tensor, "batch k"],
    indices: Int[Tensor, "batch k"],
    W_dec: Float[Tensor, "d_sae d_out"],
    b_dec: Float[Tensor, " d_out"],
    budgets: tuple[int, ...] | None = None,
) -> Float[Tensor, " budget"]:
    """||x - x_hat_j||^2 for each budget j, summed over d_out, mean over the batch.

    `x_hat_j` is `b_dec` plus the first j entries of each row, in the order given: sort them by
    falling value to nest TopK reconstructions (arXiv 2505.24473). A budget of 0, the bias alone, is
    not allowed.

    It is differentiable in everything except `indices`. The backward pass starts from the last
    residual and adds entries back, so memory does not grow with the number of budgets. It works in
    float32, or in float64 if an input is float64, also under autocast.

    Args:
        x: what to reconstruct.
        values: values of the entries.
        indices: latents of the entries; an index may repeat.
        W_dec: the decoder.
        b_dec: its bias.
        budgets: strictly increasing, within 1..k; None means all of 1..k.

    Raises:
        UsageError: `budgets` is empty, not strictly increasing, or leaves 1..k.
    """
    k = values.shape[1]
    budgets = tuple(range(1, k + 1)) if budgets is None else budgets
    increasing = all(a < b for a, b in pairwise(budgets))
    if not budgets or not increasing or budgets[0] < 1 or budgets[-1] > k:
        raise UsageError(
            f"budgets={budgets} must be strictly increasing numbers within 1..{k}, "
            "the entries of a row; sort them, drop repeats, or raise k."
        )
    dtype = torch.float32
    for tensor in (x, values, W_dec, b_dec):
        dtype = torch.promote_types(dtype, tensor.dtype)
    return _NestedErrors.apply(
        x.to(dtype), values.to(dtype), indices, W_dec.to(dtype), b_dec.to(dtype), budgets
    )


class _NestedErrors(torch.autograd.Function):
    """The forward pass subtracts entry by entry from the residual; the backward one adds them."""

    @staticmethod
    @override
    def forward(
        ctx: Any,
        x: Float[Tensor, "batch d_out"],
        values: Float[Tensor, "batch k"],
        indices: Int[Tensor, "batch k"],
        W_dec: Float[Tensor, "d_sae d_out"],
        b_dec: Float[Tensor, " d_out"],
        budgets: tuple[int, ...],
    ) -> Float[Tensor, " budget"]:
        residual = x - b_dec
        errors = []
        for start, stop in pairwise((0, *budgets)):
            added = SparseCodes(values[:, start:stop], indices[:, start:stop], len(W_dec))
            residual -= sparse_decode(added, W_dec)
            errors.append(residual.pow(2).sum(1).mean())
        ctx.budgets = budgets
        ctx.save_for_backward(values, indices, W_dec, residual)
        return torch.stack(errors)

    @staticmethod
    @override
    @once_differentiable
    def backward(  # pyrefly: ignore[bad-override]
        ctx: Any,
        grad_errors: Float[Tensor, " budget"],
    ) -> tuple[
        Float[Tensor, "batch d_out"],
        Float[Tensor, "batch k"],
        None,
        Float[Tensor, "d_sae d_out"] | None,
        Float[Tensor, " d_out"],
        None,
    ]:
        values, indices, W_dec, residual = ctx.saved_tensors
        needs_weights = ctx.needs_input_grad[3]
        slopes = dict(zip(ctx.budgets, 2 * grad_errors / len(values), strict=True))
        residual, suffix = residual.clone(), torch.zeros_like(residual)
        grad_values = torch.zeros_like(values)
        grad_W = torch.zeros_like(W_dec) if needs_weights else None
        for t in reversed(range(ctx.budgets[-1])):
            if t + 1 in slopes:
                suffix.addcmul_(slopes[t + 1], residual)
            v, w = values[:, t, None], W_dec[indices[:, t]]
            grad_values[:, t] = -(suffix * w).sum(1)
            if grad_W is not None:
                grad_W.index_add_(0, indices[:, t], v * suffix, alpha=-1)
            residual.addcmul_(v, w)
        return suffix, grad_values, None, grad_W, -suffix.sum(0), None

"""Sparse decode as a differentiable function, for any loss and any optimizer."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from saelab.kernels.torch.pairs import heavy_slices, pairs_by_latent
from saelab.kernels.triton.decode.products import decode, dot_atoms
from saelab.kernels.triton.decode.sums import sum_by_latent
from saelab.types import SparseCodes


def sparse_decode(
    codes: SparseCodes, W_dec: Float[Tensor, "d_sae d_out"]
) -> Float[Tensor, "batch d_out"]:
    """`z @ W_dec`, differentiable in both, without atomics; sums are always float32."""
    starts, tokens = _rows(codes)
    indices = codes.indices.flatten().to(torch.int32)
    # A column of wider codes stays a view with gaps when flattened; kernels ignore strides.
    values = codes.values.flatten().contiguous()
    return _Decode.apply(values, indices.contiguous(), starts, tokens, W_dec.contiguous())


def _rows(codes: SparseCodes) -> tuple[Int[Tensor, " batch_1"], Int[Tensor, " entry"]]:
    """The start of each row (and the end), and the row of each entry, as int32."""
    n = codes.values.numel()
    if codes.offsets is None:
        width = codes.values.shape[1]
        starts = torch.arange(len(codes) + 1, device=codes.values.device) * width
    else:
        starts = torch.cat([codes.offsets, codes.offsets.new_tensor([n])])
    return starts.to(torch.int32), codes.rows().flatten().to(torch.int32)


class _Decode(torch.autograd.Function):
    @staticmethod
    @override
    def forward(
        ctx: Any,
        values: Float[Tensor, " entry"],
        indices: Int[Tensor, " entry"],
        starts: Int[Tensor, " batch_1"],
        tokens: Int[Tensor, " entry"],
        W: Float[Tensor, "d_sae d_out"],
    ) -> Float[Tensor, "batch d_out"]:
        ctx.save_for_backward(values, indices, starts, tokens, W)
        return decode(values, indices, starts, W)

    @staticmethod
    @override
    @once_differentiable
    def backward(  # pyrefly: ignore[bad-override]
        ctx: Any, grad: Float[Tensor, "batch d_out"]
    ) -> tuple[Tensor | None, None, None, None, Tensor | None]:
        values, indices, starts, tokens, W = ctx.saved_tensors
        grad = grad.contiguous()
        to_values = to_W = None
        if ctx.needs_input_grad[0]:
            to_values = dot_atoms(grad, indices, starts, W).to(values.dtype)
        if ctx.needs_input_grad[4]:
            pairs = pairs_by_latent(indices, len(W))
            to_W = sum_by_latent(pairs, heavy_slices(pairs), tokens, values, grad).to(W.dtype)
        return to_values, None, None, None, to_W

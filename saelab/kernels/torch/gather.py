"""Sparse decode by gathering rows: exact on any device, without a `batch x d_sae` tensor."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from saelab.kernels.cuda import runs_triton
from saelab.types import SparseCodes

WIDENED_AT_ONCE = 2**24
"""Numbers of W_dec that are widened together."""


def sparse_decode(
    codes: SparseCodes, W_dec: Float[Tensor, "d_sae d_out"], dtype: torch.dtype | None = None
) -> Float[Tensor, "batch d_out"]:
    """`z @ W_dec`, reading only the rows that the codes select; differentiable in both.

    With another `dtype` than W_dec has, its rows are widened to it as they are read.
    """
    if not codes.values.numel():
        return W_dec.new_zeros(len(codes), W_dec.shape[1], dtype=dtype)
    if dtype is not None and dtype != W_dec.dtype:
        return _widened(codes.rectangular(), W_dec, dtype)
    if runs_triton(W_dec):
        from saelab.kernels.triton.decode.autograd import sparse_decode as by_kernels

        return by_kernels(codes, W_dec)
    return F.embedding_bag(
        codes.indices,
        W_dec,
        offsets=codes.offsets,
        per_sample_weights=codes.values,
        mode="sum",
    )


def _widened(codes: SparseCodes, W_dec: Tensor, dtype: torch.dtype) -> Tensor:
    width = max(1, codes.values.shape[1])
    rows = max(1, WIDENED_AT_ONCE // (width * W_dec.shape[1]))
    parts = zip(codes.values.to(dtype).split(rows), codes.indices.split(rows), strict=True)
    return torch.cat([(z[:, None] @ W_dec[i].to(dtype)).squeeze(1) for z, i in parts])

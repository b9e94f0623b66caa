"""Sparse decode by gathering rows: exact on any device, without a `batch x d_sae` tensor."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from saelab.kernels.cuda import runs_triton
from saelab.types import SparseCodes


def sparse_decode(
    codes: SparseCodes, W_dec: Float[Tensor, "d_sae d_out"]
) -> Float[Tensor, "batch d_out"]:
    """`z @ W_dec`, reading only the rows that the codes select; differentiable in both."""
    if not codes.values.numel():
        return W_dec.new_zeros(len(codes), W_dec.shape[1])
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

"""The sparse backward pass of an affine encoder that keeps few outputs, on any device."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from typing_extensions import override

from saelab.kernels.cuda import runs_triton
from saelab.kernels.torch.gather import sparse_decode
from saelab.types import SparseCodes


def affine_codes(
    codes: SparseCodes,
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    b_dec: Float[Tensor, " d_in"] | None = None,
) -> SparseCodes:
    """The same codes, made differentiable: their values came from `(x - b_dec) @ W_enc + b_enc`.

    They may have been rectified since: an entry of zero has no gradient. So the dense product needs
    no graph, and the backward pass costs only as much as the kept entries: no tensor of `batch *
    d_sae` gradients, and no dense product. If `b_dec` is None, nothing is subtracted.
    """
    shape = codes.values.shape
    values = _Affine.apply(
        codes.values.detach().flatten(),
        codes.indices.flatten(),
        codes.rows().flatten().contiguous(),
        x,
        W_enc,
        b_enc,
        b_dec,
    )
    return SparseCodes(values.view(shape), codes.indices, codes.d_sae, codes.offsets)


class LatentSums:
    """`z^T @ rows` for codes z and any `rows`, with one sort of the entries by latent.

    Sums follow the order of the tokens, without atomics.
    """

    def __init__(
        self,
        indices: Int[Tensor, " entry"],
        tokens: Int[Tensor, " entry"],
        weights: Float[Tensor, " entry"],
        d_sae: int,
    ) -> None:
        self._d_sae = d_sae
        if runs_triton(weights):
            from saelab.kernels.torch.pairs import heavy_slices, pairs_by_latent

            self._pairs = pairs_by_latent(indices, d_sae)
            self._slices = heavy_slices(self._pairs)
            self._tokens, self._weights = tokens.int(), weights.contiguous()
            return
        latents, order = torch.sort(indices, stable=True)
        self._pairs = None
        self._starts = torch.searchsorted(latents, torch.arange(d_sae, device=latents.device))
        self._tokens, self._weights = tokens[order], weights[order]

    def __call__(self, rows: Float[Tensor, "batch d"]) -> Float[Tensor, "d_sae d"]:
        """For each latent, the sum of its weights times its tokens' rows."""
        if self._pairs is not None:
            from saelab.kernels.triton.decode.sums import sum_by_latent

            return sum_by_latent(
                self._pairs, self._slices, self._tokens, self._weights, rows.contiguous()
            )
        if not len(self._tokens):
            return rows.new_zeros(self._d_sae, rows.shape[1])
        weights = self._weights.to(rows.dtype)
        return F.embedding_bag(
            self._tokens, rows, self._starts, mode="sum", per_sample_weights=weights
        )


class _Affine(torch.autograd.Function):
    @staticmethod
    @override
    def forward(
        ctx: Any,
        values: Float[Tensor, " entry"],
        indices: Int[Tensor, " entry"],
        tokens: Int[Tensor, " entry"],
        x: Float[Tensor, "batch d_in"],
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        b_dec: Float[Tensor, " d_in"] | None,
    ) -> Float[Tensor, " entry"]:
        ctx.save_for_backward(values, indices, tokens, x, W_enc, b_dec)
        ctx.bias_type = b_enc.dtype
        return values.clone()

    @staticmethod
    @override
    @once_differentiable
    def backward(  # pyrefly: ignore[bad-override]
        ctx: Any, grad: Float[Tensor, " entry"]
    ) -> tuple[None, None, None, Tensor | None, Tensor | None, Tensor, Tensor | None]:
        values, indices, tokens, x, W_enc, b_dec = ctx.saved_tensors
        grad = torch.where(values != 0, grad, 0.0)
        d_sae = W_enc.shape[1]
        to_x = to_W = to_b_dec = None
        sums = LatentSums(indices, tokens, grad, d_sae)
        to_b_enc = sums(grad.new_ones(len(x), 1)).squeeze(1).to(ctx.bias_type)
        if ctx.needs_input_grad[4]:
            centred = x if b_dec is None else x - b_dec
            to_W = sums(centred).T.to(W_enc.dtype)
        if b_dec is not None and ctx.needs_input_grad[6]:
            # Every row has the same b_dec, so the sum over rows is multiplied once.
            to_b_dec = -(W_enc @ to_b_enc.to(W_enc.dtype)).to(b_dec.dtype)
        if ctx.needs_input_grad[3]:
            starts = torch.searchsorted(tokens, torch.arange(len(x), device=tokens.device))
            slopes = SparseCodes(grad.to(W_enc.dtype), indices, d_sae, starts)
            to_x = sparse_decode(slopes, W_enc.T.contiguous()).to(x.dtype)
        return None, None, None, to_x, to_W, to_b_enc, to_b_dec

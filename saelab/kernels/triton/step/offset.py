# ruff: noqa: ANN001, ANN202 - Triton kernels take pointers, which have no Python type.
"""What a reconstruction has beside its latents: the biases, and a transcoder's skip connection.

A transcoder reconstructs other rows than it reads: x_hat = z @ W_dec + (x - b_in) @ W_skip + b_dec
(arXiv 2501.18823). The skip connection does not depend on the codes, so a step subtracts it from
the target first. Its gradients, for G the loss's gradient by x_hat: (x - b_in)^T @ G for W_skip,
and -sum(G) @ W_skip^T for b_in, to which the encoder adds its own.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from saelab.kernels.sizes import ceil_div
from saelab.kernels.triton.step.aux_k import product_
from saelab.kernels.triton.weights import Parameter, Weights


@triton.jit
@no_type_check
def _centre_kernel(x, bias, centred, n, d, BLOCK: tl.constexpr):
    """The encoder's input, rounded once."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
    value -= tl.load(bias + at % d, mask=at < n, other=0.0)
    tl.store(centred + at, value, mask=at < n)


class OffsetGradient(NamedTuple):
    """The gradient of a parameter outside of the latents: `factor * residual - minus`.

    The factor is that by which x_hat - target becomes the loss's gradient by x_hat.
    """

    of: Parameter
    residual: Float[Tensor, "*shape"]
    minus: Float[Tensor, "*shape"]


class Offset:
    """The biases and the skip connection in a step.

    Attributes:
        x: `[batch d_in]`, the rows to read; write them before the step.
        target: `[batch d_out]`, the rows to reconstruct; `x` itself unless of a transcoder.
        centred: `[batch d_in]`, what the encoder reads: x less its bias, or `x` itself.
        wanted: `[batch d_out]`, what the latents and b_dec reconstruct: the target, less the skip.
        slope: `[d_in d_out]`, the sum over rows that W_skip's gradient is made of; None without.
    """

    def __init__(self, weights: Weights, batch: int, *, centres: bool) -> None:
        dtype, device = weights.dec.copy.dtype, weights.scale.device
        d_out, d_in = (w.value.shape[1] for w in (weights.dec, weights.enc))
        self.weights, self.centres = weights, centres
        self.x = torch.zeros(batch, d_in, dtype=dtype, device=device)
        self.centred = torch.empty_like(self.x) if centres else self.x
        reads = weights.b_in is None
        self.target = self.x if reads else torch.zeros(batch, d_out, dtype=dtype, device=device)
        self.wanted, self.slope = self.target, None
        self._nothing = weights.scale.new_zeros(max(d_in, d_out))
        if weights.W_skip is not None:
            self.wanted = weights.scale.new_empty(batch, d_out)
            self.slope = torch.zeros_like(weights.W_skip.value)

    def centre(self) -> None:
        """Compute what the encoder reads and what the latents are to reconstruct."""
        w, n, block = self.weights, self.x.numel(), 1024
        bias = w.b_dec if w.b_in is None else w.b_in
        if self.centres:
            _centre_kernel[(ceil_div(n, block),)](
                self.x, bias.value, self.centred, n, self.x.shape[1], BLOCK=block
            )
        if w.W_skip is not None:
            product_(self.centred, w.W_skip.copy, self.wanted)
            torch.sub(self.target, self.wanted, out=self.wanted)

    def learn(self, residual: Float[Tensor, "batch d_out"]) -> Float[Tensor, " d_out"]:
        """Keep what the gradients need of the errors; returns the errors' sum."""
        if self.slope is not None:
            product_(self.centred.T, residual, self.slope)
        return torch.sum(residual, 0, dtype=torch.float32)

    def gradients(
        self, columns: Float[Tensor, " d_out"], through: Float[Tensor, " d_in"] | None
    ) -> list[OffsetGradient]:
        """The gradients of a step.

        Args:
            columns: the sum of the errors, from `learn`.
            through: what the encoder's biases send to its input, summed over latents; None if the
                encoder reads x as it is.
        """
        w, nothing = self.weights, self._nothing[: len(columns)]
        if w.b_in is None:
            return [OffsetGradient(w.b_dec, columns, nothing if through is None else through)]
        assert through is not None
        found = [OffsetGradient(w.b_dec, columns, nothing)]
        if w.W_skip is None or self.slope is None:
            return [*found, OffsetGradient(w.b_in, self._nothing[: len(through)], through)]
        found.append(OffsetGradient(w.b_in, -(w.W_skip.value @ columns), through))
        return [*found, OffsetGradient(w.W_skip, self.slope, torch.zeros_like(self.slope))]

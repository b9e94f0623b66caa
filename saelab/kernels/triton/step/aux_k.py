# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""AuxK inside the fused step: dense products over the few rows of dead latents.

Dead latents are gathered into a fixed number of slots, so that a CUDA graph can hold the work; the
number of filled slots stays on the device. With k_aux near d_in / 2 the dead latents' codes are too
dense to gather by entry. Their pre-activations are read from those of all latents, or, if that is
more work, computed again.
"""

from dataclasses import dataclass
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.exchange import LatentExchange
from saelab.kernels.sizes import ceil_div
from saelab.kernels.triton.select.keep import keep_top_k_
from saelab.kernels.triton.step.dead import DeadRows
from saelab.kernels.triton.step.streams import on, wait
from saelab.kernels.triton.weights import Weights

ROWS, COLUMNS = 64, 64
READ_AT = {2: 100, 4: 30}
"""From how many multiply-adds of the dead latents' product per pre-activation of all latents on
these are read instead, by the bytes of one.

Reading a tenth of the columns of a matrix moves nearly all of it. On an H200 it takes as long as
the product and its reads at 80 multiply-adds in bfloat16; float32 moves twice the bytes, but its
product takes 15 times as long.
"""


@triton.jit
@no_type_check
def _slope_kernel(
    z,
    slopes,
    partial,
    batch,
    n,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Clear the slopes of silent entries; sums over ROWS rows of slope and of value * slope."""
    block = tl.program_id(0)
    row = block * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < batch)[:, None] & (column < n)[None, :]
    at = row.to(tl.int64)[:, None] * n + column[None, :]
    value = tl.load(z + at, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(slopes + at, mask=inside, other=0.0)
    slope = tl.where(value != 0, slope, 0.0)
    tl.store(slopes + at, slope, mask=inside)
    slope = slope.to(tl.float32)
    to = partial + (block.to(tl.int64) * n + column) * 2
    tl.store(to, tl.sum(slope, 0), mask=column < n)
    tl.store(to + 1, tl.sum(value * slope, 0), mask=column < n)


@dataclass(frozen=True)
class AuxRules:
    """What stays the same about AuxK during a run.

    Attributes:
        k: dead latents per row.
        coefficient: AuxK's weight in the loss.
        dead_after: tokens of silence after which a latent is dead.
    """

    k: int
    coefficient: float
    dead_after: int


class Extra(NamedTuple):
    """AuxK's gradients, as the latent-major kernels read them; see `AuxStep`."""

    slots: Tensor
    to_dec: Tensor
    to_enc: Tensor
    scalars: Tensor
    slope: Tensor

    @classmethod
    def nothing(cls, any_: Tensor) -> "Extra":
        """Placeholders for a step without AuxK; they are not read."""
        return cls(any_, any_, any_, any_, any_)


class AuxStep:
    """AuxK's gradients for at most `capacity` dead latents; every tensor has a fixed address.

    Attributes:
        dead: the dead latents.
        to_dec: `[capacity d_out]`, gradients of the decoder's rows.
        to_enc: `[capacity d_in]`, gradients of the encoder's rows.
        scalars: `[capacity 2]`, gradient of the bias, and the decoder's radial part.
        slope: factor by which the gradients must still be multiplied.
        loss: AuxK's loss in the last step, before its coefficient; 0 if no latent was dead.
    """

    def __init__(
        self,
        weights: Weights,
        rules: AuxRules,
        capacity: int,
        exchange: LatentExchange,
        *,
        signed: bool,
    ) -> None:
        # The products are fastest with rows that are a multiple of 16 bytes.
        capacity = ceil_div(capacity, 8) * 8
        m, d_in = weights.enc.value.shape
        self.weights, self.rules, self.exchange, self.signed = weights, rules, exchange, signed
        encodes = capacity * d_in < m * READ_AT[weights.enc.copy.element_size()]
        self.dead = DeadRows(weights, capacity, rules.dead_after, encoder=encodes)
        self.to_dec = weights.scale.new_zeros(capacity, weights.dec.value.shape[1])
        self.to_enc = weights.scale.new_zeros(capacity, d_in)
        self.scalars = weights.scale.new_zeros(capacity, 2)
        self.loss, self.slope = weights.scale.new_zeros(()), weights.scale.new_zeros(1)

    @property
    def extra(self) -> Extra:
        """The gradients of the last step."""
        return Extra(self.dead.slots, self.to_dec, self.to_enc, self.scalars, self.slope)

    def choose(
        self,
        codes: tuple[Float[Tensor, "*entry"], Int[Tensor, "*entry"]],
        centred: Float[Tensor, "batch d_in"],
        pre_acts: Float[Tensor, "_ d_sae"],
    ) -> tuple[Float[Tensor, "batch slot"], Int[Tensor, ""]]:
        """The dead latents' codes, dense, and how many latents of all processes are dead.

        Args:
            codes: values and indices of the main reconstruction.
            centred: what the encoder reads.
            pre_acts: all latents' pre-activations; not read where the dead ones' are made again.
        """
        dead, k, signed = self.dead, self.rules.k, self.signed
        dead.find(*codes)
        dead.gather()
        z = centred.new_empty(len(centred), len(self.to_dec))
        if dead.encoder is not None:
            bias, rows = dead.encoder
            torch.addmm(bias, centred, rows.T, out=z)
        elif self.exchange.shard is None:
            keep_top_k_(z, dead.n, k, signed=signed, columns=(pre_acts, dead.latents))
            return z, dead.n
        else:
            filled = torch.arange(z.shape[1], device=z.device) < dead.n
            torch.index_select(pre_acts, 1, torch.where(filled, dead.latents, 0), out=z)
        return z, self._keep_(z)

    def run(
        self,
        z: Float[Tensor, "batch slot"],
        residual: Float[Tensor, "batch d_out"],
        centred: Float[Tensor, "batch d_in"],
        side: torch.cuda.Stream | None = None,
    ) -> Float[Tensor, "batch d_out"]:
        """Compute the gradients; returns the error that is left.

        Args:
            z: the dead latents' codes.
            residual: x_hat less what it reconstructs.
            centred: what the encoder reads.
            side: a second stream for what need not wait.
        """
        missed = self._missed(residual, z)
        wait(side, None)
        with on(side):
            product_(z.T, missed, self.to_dec)
        slopes = missed @ self.dead.atoms.T
        self._reduce(z, slopes)
        product_(slopes.T, centred, self.to_enc)
        return missed

    def measure(
        self,
        missed: Float[Tensor, "batch d_out"],
        n_dead: Int[Tensor, ""],
        variance: Float[Tensor, ""],
    ) -> None:
        """The loss and its slope; `variance` is of the residual: squares about its mean, summed."""
        self.loss.copy_(self.exchange.mean(squared_norm(missed)) / variance)
        self.loss.copy_(torch.where(n_dead > 0, self.loss, 0.0).nan_to_num(0.0, 0.0, 0.0))
        self.slope.copy_((2 * self.rules.coefficient / variance).nan_to_num(0.0, 0.0, 0.0))

    def _keep_(self, z: Float[Tensor, "batch slot"]) -> Int[Tensor, ""]:
        """Turn the dead latents' pre-activations into codes; the number of all that are dead.

        Of several processes, each selects among all their dead latents, and keeps its own.
        """
        shard, n, n_dead = self.exchange.shard, z.shape[1], self.dead.n
        if shard is None:
            keep_top_k_(z, n_dead, self.rules.k, signed=self.signed)
            return n_dead
        filled = torch.arange(n, device=z.device) < n_dead
        own = torch.where(filled, self.dead.latents * shard.size + shard.rank, shard.d_sae)
        latents = self.exchange.gather(own).flatten()
        order = latents.argsort(stable=True)
        total = (latents < shard.d_sae).sum().int()
        every = self.exchange.gather(z).movedim(0, 1).flatten(1)[:, order].contiguous()
        keep_top_k_(every, total, self.rules.k, signed=self.signed)
        z.copy_(every[:, order.argsort()[shard.rank * n : (shard.rank + 1) * n]])
        return total

    def _missed(
        self, residual: Float[Tensor, "batch d_out"], z: Float[Tensor, "batch slot"]
    ) -> Float[Tensor, "batch d_out"]:
        """The error that is left with these codes of all processes' dead latents."""
        if self.exchange.shard is None:
            return torch.addmm(residual, z, self.dead.atoms)
        part = self.loss.new_empty(residual.shape)
        product_(z, self.dead.atoms, part)
        return (residual + self.exchange.sum(part)).to(residual.dtype)

    def _reduce(self, z: Float[Tensor, "batch slot"], slopes: Float[Tensor, "batch slot"]) -> None:
        """Clear the slopes of silent entries, and sum what is left."""
        batch, n = z.shape
        blocks = ceil_div(batch, ROWS)
        partial = self.loss.new_empty(blocks, n, 2)
        _slope_kernel[(blocks, ceil_div(n, COLUMNS))](
            z, slopes, partial, batch, n, ROWS=ROWS, COLUMNS=COLUMNS
        )
        torch.sum(partial, 0, out=self.scalars)


def product_(a: Float[Tensor, "i j"], b: Float[Tensor, "j k"], out: Float[Tensor, "i k"]) -> None:
    """`a @ b` with float32 sums, returned in float32."""
    if a.is_cuda and a.dtype != torch.float32:
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        torch.mm(a.float(), b.float(), out=out)


def squared_norm(rows: Float[Tensor, "batch d_in"]) -> Float[Tensor, ""]:
    """The sum of all entries' squares in float32, in one read."""
    return torch.linalg.vector_norm(rows, dtype=torch.float32).square()

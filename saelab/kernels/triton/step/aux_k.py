# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
# pyright: reportMissingParameterType=false, reportCallIssue=false
"""AuxK inside the fused step: dense products over the few rows of dead latents.

Dead latents are gathered into a fixed number of slots, so that a CUDA graph can hold the work; the
number of filled slots stays on the device. With k_aux near d_in / 2 the dead latents' codes are too
dense to gather by entry.
"""

from dataclasses import dataclass
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.kernels.exchange import LatentExchange
from saelab.kernels.sizes import ceil_div
from saelab.kernels.triton.select.keep import keep_top_k_
from saelab.kernels.triton.weights import Weights

ROWS, COLUMNS = 64, 64


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
    to = partial + block.to(tl.int64) * 2 * n + column
    tl.store(to, tl.sum(slope, 0), mask=column < n)
    tl.store(to + n, tl.sum(value * slope, 0), mask=column < n)


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
        slots: `[d_sae]`, slot of each dead latent, -1 for living ones.
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
        m, d_out = weights.dec.value.shape
        self.weights, self.rules, self.exchange, self.signed = weights, rules, exchange, signed
        self.slots = torch.full((m,), -1, dtype=torch.int32, device=weights.scale.device)
        self.to_dec = weights.scale.new_zeros(capacity, d_out)
        self.to_enc = weights.scale.new_zeros(capacity, weights.enc.value.shape[1])
        self.scalars = weights.scale.new_zeros(capacity, 2)
        self.loss, self.slope = weights.scale.new_zeros(()), weights.scale.new_zeros(1)
        self._places = self.slots.new_zeros(capacity + 1, dtype=torch.int64)
        self._latents = torch.arange(m, device=self.slots.device)

    @property
    def extra(self) -> Extra:
        """The gradients of the last step."""
        return Extra(self.slots, self.to_dec, self.to_enc, self.scalars, self.slope)

    def run(
        self,
        codes: tuple[Float[Tensor, "*entry"], Int[Tensor, "*entry"]],
        residual: Float[Tensor, "batch d_out"],
        centred: Float[Tensor, "batch d_in"],
        variance: Float[Tensor, ""],
    ) -> None:
        """Do AuxK's part of one step.

        Args:
            codes: values and indices of the main reconstruction.
            residual: x_hat less what it reconstructs.
            centred: what the encoder reads.
            variance: the residual's squares about its mean, summed.
        """
        w = self.weights
        n_dead, places = self._gather(self._dead(codes))
        z = torch.addmm(w.b_enc.copy[places], centred, w.enc.copy[places].T)
        n_dead = self._keep_(z, n_dead, places)
        atoms = (w.scale[places, None] * w.dec.value[places]).to(z.dtype)
        missed = self._missed(residual, z, atoms)
        self.loss.copy_(squared_norm(missed) / variance)
        self.loss.copy_(torch.where(n_dead > 0, self.loss, 0.0).nan_to_num(0.0, 0.0, 0.0))
        self.slope.copy_((2 * self.rules.coefficient / variance).nan_to_num(0.0, 0.0, 0.0))
        slopes = missed @ atoms.T
        self.scalars.copy_(self._reduce(z, slopes))
        product_(z.T, missed, self.to_dec)
        product_(slopes.T, centred, self.to_enc)

    def _dead(
        self, codes: tuple[Float[Tensor, "*entry"], Int[Tensor, "*entry"]]
    ) -> Bool[Tensor, " d_sae"]:
        """Which latents were silent for long, or are under-used, and are silent in this batch."""
        values, indices = (t.flatten() for t in codes)
        m = len(self.slots)
        fired = torch.zeros(m + 1, dtype=torch.bool, device=values.device)
        # Entries of value zero go to a slot of their own, so every other write is True.
        fired.scatter_(0, torch.where(values != 0, indices.long(), m), True)  # noqa: FBT003
        dead = self.weights.since_fired >= self.rules.dead_after
        if self.weights.usage is not None:
            dead = dead | self.weights.usage.underused
        return dead & ~fired[:m]

    def _gather(
        self, dead: Bool[Tensor, " d_sae"]
    ) -> tuple[Int[Tensor, ""], Int[Tensor, " capacity"]]:
        """The number of dead latents, and which they are; slots beyond hold arbitrary latents."""
        place = dead.cumsum(0) - 1
        self.slots.copy_(torch.where(dead, place, -1))
        self._places.zero_()
        self._places.scatter_(0, torch.where(dead, place, len(self.to_dec)), self._latents)
        return dead.sum().int(), self._places[:-1]

    def _keep_(
        self,
        z: Float[Tensor, "batch n"],
        n_dead: Int[Tensor, ""],
        places: Int[Tensor, " n"],
    ) -> Int[Tensor, ""]:
        """Turn the dead latents' pre-activations into codes; the number of all that are dead.

        Of several processes, each selects among all their dead latents, and keeps its own.
        """
        shard, n = self.exchange.shard, len(places)
        if shard is None:
            keep_top_k_(z, n_dead, self.rules.k, signed=self.signed)
            return n_dead
        filled = torch.arange(n, device=z.device) < n_dead
        own = torch.where(filled, places * shard.size + shard.rank, shard.d_sae)
        latents = self.exchange.gather(own).flatten()
        order = latents.argsort(stable=True)
        total = (latents < shard.d_sae).sum().int()
        every = self.exchange.gather(z).movedim(0, 1).flatten(1)[:, order].contiguous()
        keep_top_k_(every, total, self.rules.k, signed=self.signed)
        z.copy_(every[:, order.argsort()[shard.rank * n : (shard.rank + 1) * n]])
        return total

    def _missed(
        self,
        residual: Float[Tensor, "batch d_in"],
        z: Float[Tensor, "batch n"],
        atoms: Float[Tensor, "n d_in"],
    ) -> Float[Tensor, "batch d_in"]:
        """The error that is left with these codes of all processes' dead latents."""
        if self.exchange.shard is None:
            return torch.addmm(residual, z, atoms)
        part = self.loss.new_empty(residual.shape)
        product_(z, atoms, part)
        return (residual + self.exchange.sum(part)).to(residual.dtype)

    def _reduce(
        self, z: Float[Tensor, "batch n"], slopes: Float[Tensor, "batch n"]
    ) -> Float[Tensor, "n 2"]:
        batch, n = z.shape
        blocks = ceil_div(batch, ROWS)
        partial = self.loss.new_empty(blocks, 2, n)
        _slope_kernel[(blocks, ceil_div(n, COLUMNS))](
            z, slopes, partial, batch, n, ROWS=ROWS, COLUMNS=COLUMNS
        )
        return partial.sum(0).T


def product_(a: Float[Tensor, "i j"], b: Float[Tensor, "j k"], out: Float[Tensor, "i k"]) -> None:
    """`a @ b` with float32 sums, returned in float32."""
    if a.is_cuda and a.dtype != torch.float32:
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        torch.mm(a.float(), b.float(), out=out)


def squared_norm(rows: Float[Tensor, "batch d_in"]) -> Float[Tensor, ""]:
    """The sum of all entries' squares in float32, in one read."""
    return torch.linalg.vector_norm(rows, dtype=torch.float32).square()

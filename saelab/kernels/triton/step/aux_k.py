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

from saelab.kernels.sizes import ceil_div, power_of_two
from saelab.kernels.triton.select.rows import order_key, read
from saelab.kernels.triton.weights import Weights

CHUNK = 8192
KEYS = 2048
"""Keys of a chunk in the registers of a warp."""
ROWS, COLUMNS = 64, 64


@triton.jit
@no_type_check
def _keys(row, at, valid, BITS: tl.constexpr, SIGNED: tl.constexpr):
    key = order_key(read(row, at, valid, SIGNED), valid)
    if BITS == 16:
        # The lower half of a bfloat16's key is all ones if the number is negative.
        key = key & -0x10000
    return key


@triton.jit
@no_type_check
def _keep_kernel(
    pre_acts,
    n_valid,
    k,
    n: tl.constexpr,
    BITS: tl.constexpr,
    CHUNK: tl.constexpr,
    SIGNED: tl.constexpr,
):
    """Write zeros over all entries except a row's top k of its first `n_valid`.

    The k-th largest key is found bit by bit, by counting the keys that are at least as large. A row
    of one chunk is read once.
    """
    row = pre_acts + tl.program_id(0).to(tl.int64) * n
    valid = tl.load(n_valid)
    wanted = tl.minimum(k, valid)
    limit = tl.full([], -0x80000000, tl.int32)
    at = tl.arange(0, CHUNK)
    first_keys = _keys(row, at, at < valid, BITS, SIGNED)
    for done in range(BITS):
        higher = limit + (tl.full([], 1, tl.int32) << (31 - done))
        count = tl.sum((first_keys >= higher).to(tl.int32))
        for first in range(CHUNK, n, CHUNK):
            count += _count_above(row, first + at, valid, higher - 1, BITS, SIGNED)
        limit = tl.where(count >= wanted, higher, limit)
    missing = wanted - tl.sum((first_keys > limit).to(tl.int32))
    for first in range(CHUNK, n, CHUNK):
        missing -= _count_above(row, first + at, valid, limit, BITS, SIGNED)
    for first in range(0, n, CHUNK):
        place = first + at
        key = _keys(row, place, place < valid, BITS, SIGNED)
        equal = (key == limit) & (place < valid)
        kept = (key > limit) | (equal & (tl.cumsum(equal.to(tl.int32)) <= missing))
        missing -= tl.sum(equal.to(tl.int32))
        value = tl.load(row + place, mask=place < n, other=0.0)
        if not SIGNED:
            kept = kept & (value > 0)
        tl.store(row + place, tl.where(kept & (place < valid), value, 0.0), mask=place < n)


@triton.jit
@no_type_check
def _count_above(row, at, valid, limit, BITS: tl.constexpr, SIGNED: tl.constexpr):
    return tl.sum((_keys(row, at, at < valid, BITS, SIGNED) > limit).to(tl.int32))


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


def keep_top_k_(
    pre_acts: Float[Tensor, "batch n"],
    n_valid: Int[Tensor, ""],
    k: int,
    *,
    signed: bool,
) -> None:
    """Turn pre-activations into dense codes in place: the top k of each row's first `n_valid`.

    Any k; of equal entries the lowest index. With `signed`, by magnitude with signs, else
    rectified.
    """
    batch, n = pre_acts.shape
    chunk = min(CHUNK, max(16, power_of_two(n)))
    _keep_kernel[(batch,)](
        pre_acts, n_valid, k, n=n, CHUNK=chunk, SIGNED=signed, num_warps=max(1, chunk // KEYS),
        BITS=16 if pre_acts.dtype == torch.bfloat16 else 32,
    )  # fmt: skip


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

    def __init__(self, weights: Weights, rules: AuxRules, capacity: int, *, signed: bool) -> None:
        m, d_out = weights.dec.value.shape
        self.weights, self.rules, self.signed = weights, rules, signed
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
        keep_top_k_(z, n_dead, self.rules.k, signed=self.signed)
        atoms = (w.scale[places, None] * w.dec.value[places]).to(z.dtype)
        missed = torch.addmm(residual, z, atoms)
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

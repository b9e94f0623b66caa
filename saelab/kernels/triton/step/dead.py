# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""The dead latents of a batch, in ascending order, and their rows one after the other."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.sizes import ceil_div, power_of_two
from saelab.kernels.triton.weights import Weights

BLOCK = 1024
"""Latents, or entries, of a program."""


@triton.jit
@no_type_check
def _fire_kernel(values, indices, fired, n, BLOCK: tl.constexpr):
    """Mark the latents of all codes that are not zero."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    on = tl.load(values + at, mask=at < n, other=0.0) != 0
    tl.store(fired + tl.load(indices + at, mask=at < n, other=0), 1, mask=on & (at < n))


@triton.jit
@no_type_check
def _dead(since_fired, underused, fired, at, m, dead_after, USAGE: tl.constexpr):
    dead = tl.load(since_fired + at, mask=at < m, other=0) >= dead_after
    if USAGE:
        dead = dead | (tl.load(underused + at, mask=at < m, other=0) != 0)
    return (dead & (tl.load(fired + at, mask=at < m, other=1) == 0)).to(tl.int32)


@triton.jit
@no_type_check
def _count_kernel(
    since_fired, underused, fired, counts, m, dead_after, USAGE: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    dead = _dead(since_fired, underused, fired, at, m, dead_after, USAGE)
    tl.store(counts + tl.program_id(0), tl.sum(dead))


@triton.jit
@no_type_check
def _list_kernel(
    since_fired,
    underused,
    fired,
    counts,
    slots,
    latents,
    total,
    m,
    capacity,
    dead_after,
    USAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Number the dead latents, and forget what fired."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    dead = _dead(since_fired, underused, fired, at, m, dead_after, USAGE)
    block = tl.arange(0, BLOCKS)
    n_before = tl.sum(tl.load(counts + block, mask=block < tl.program_id(0), other=0))
    slot = n_before + tl.cumsum(dead) - dead
    tl.store(slots + at, tl.where(dead == 1, slot, -1), mask=at < m)
    # There is room for all, see `AuxRoom`.
    tl.store(latents + slot, at, mask=(dead == 1) & (slot < capacity))
    tl.store(fired + at, 0, mask=at < m)
    if tl.program_id(0) == tl.num_programs(0) - 1:
        tl.store(total, n_before + tl.sum(dead))


@triton.jit
@no_type_check
def _rows_kernel(
    latents,
    n_dead,
    dec,
    scale,
    enc,
    bias,
    atoms,
    rows,
    biases,
    capacity,
    d,
    d_in,
    ENCODER: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A chunk of the atom of one slot, and of its encoder's row; zero in a slot that is empty."""
    slot = tl.program_id(0) % capacity
    column = (tl.program_id(0) // capacity) * COLUMNS + tl.arange(0, COLUMNS)
    filled = slot < tl.load(n_dead)
    latent = tl.load(latents + slot, mask=filled, other=0).to(tl.int64)
    to = slot.to(tl.int64)
    atom = tl.load(dec + latent * d + column, mask=filled & (column < d), other=0.0)
    atom *= tl.load(scale + latent, mask=filled, other=0.0)
    tl.store(atoms + to * d + column, atom, mask=column < d)
    if ENCODER:
        row = tl.load(enc + latent * d_in + column, mask=filled & (column < d_in), other=0.0)
        tl.store(rows + to * d_in + column, row, mask=column < d_in)
        if tl.program_id(0) < capacity:
            tl.store(biases + slot, tl.load(bias + latent, mask=filled, other=0.0))


class DeadRows:
    """The dead latents of a batch; every tensor has a fixed address.

    Attributes:
        slots: `[d_sae]`, slot of each dead latent, -1 for living ones.
        latents: `[capacity]`, the latent of each slot; undefined beyond `n`.
        n: how many there are.
        atoms: `[capacity d_out]`, their atoms in the products' dtype; zero beyond `n`.
        encoder: their encoder's biases and rows, `[capacity]` and `[capacity d_in]`; None if these
            are not gathered. If atoms encode, these, without biases.
    """

    def __init__(self, weights: Weights, capacity: int, dead_after: int, *, encoder: bool) -> None:
        m, d_out = weights.dec.value.shape
        self._weights, self._dead_after = weights, dead_after
        self.slots = torch.full((m,), -1, dtype=torch.int32, device=weights.scale.device)
        self.latents = self.slots.new_zeros(capacity)
        self.n = self.slots.new_zeros(())
        self._fired = self.slots.new_zeros(m, dtype=torch.int8)
        self._counts = self.slots.new_zeros(ceil_div(m, BLOCK))
        self.atoms = weights.dec.copy.new_zeros(capacity, d_out)
        enc = weights.enc.copy
        self.encoder = None
        if weights.enc is weights.dec:
            self.encoder = enc.new_zeros(capacity), self.atoms
        elif encoder:
            self.encoder = enc.new_zeros(capacity), enc.new_zeros(capacity, enc.shape[1])

    def find(self, values: Float[Tensor, "*entry"], indices: Int[Tensor, "*entry"]) -> None:
        """List the latents that were silent for long, or are under-used, and do not fire now.

        These are the codes of the batch; those of value zero are not on.
        """
        w, m, n = self._weights, len(self.slots), values.numel()
        values, indices = values.contiguous(), indices.contiguous()
        if n:
            _fire_kernel[(ceil_div(n, BLOCK),)](values, indices, self._fired, n, BLOCK=BLOCK)
        usage = None if w.usage is None else w.usage.underused.view(torch.int8)
        given = w.since_fired, self._fired if usage is None else usage, self._fired, self._counts
        blocks, after = len(self._counts), self._dead_after
        _count_kernel[(blocks,)](*given, m, after, USAGE=usage is not None, BLOCK=BLOCK)
        _list_kernel[(blocks,)](
            *given, self.slots, self.latents, self.n, m, len(self.latents), after,
            USAGE=usage is not None, BLOCK=BLOCK, BLOCKS=power_of_two(blocks),
        )  # fmt: skip

    def gather(self) -> None:
        """Copy their rows."""
        w, capacity = self._weights, len(self.latents)
        encoder = self.encoder is not None and w.enc is not w.dec
        d, d_in = self.atoms.shape[1], w.enc.copy.shape[1]
        biases, rows = self.encoder or (self.atoms, self.atoms)
        widest = max(d, d_in) if encoder else d
        columns = min(1024, power_of_two(widest))
        _rows_kernel[(capacity * ceil_div(widest, columns),)](
            self.latents, self.n, w.dec.value, w.scale, w.enc.copy, w.b_enc.copy, self.atoms,
            rows, biases, capacity, d, d_in, ENCODER=encoder, COLUMNS=columns,
        )  # fmt: skip

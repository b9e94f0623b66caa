# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
# pyright: reportMissingParameterType=false, reportCallIssue=false
"""The pairs of a batch of codes by latent, as `saelab.kernels.torch.pairs` makes them, by kernels.

In a step that takes a millisecond, the many small operations of torch take a tenth of it.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Int
from torch import Tensor

from saelab.kernels.sizes import ceil_div
from saelab.kernels.torch.pairs import LatentPairs, Slices, sort_key

BLOCK = 128


@triton.jit
@no_type_check
def _n_below(rising, n, limit, STEPS: tl.constexpr):
    """How many of `n` rising numbers are below each limit; STEPS halvings leave none of them."""
    low = tl.zeros_like(limit).to(tl.int32)
    high = (low + n).to(tl.int32)
    for _ in range(STEPS):
        middle = (low + high) // 2
        left = low < high
        number = tl.load(rising + middle, mask=left, other=0).to(tl.int32)
        below = left & (number < limit)
        low = tl.where(below, middle + 1, low)
        high = tl.where(below, high, middle)
    return low


@triton.jit
@no_type_check
def _offsets_kernel(keys, offsets, n, m, shift, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """The start of each latent's pairs, and the end."""
    latent = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(offsets + latent, _n_below(keys, n, latent - shift, STEPS), mask=latent <= m)


@triton.jit
@no_type_check
def _pieces_kernel(offsets, pieces, m, size, above, BLOCK: tl.constexpr):
    """Behind each latent's place, the number of its slices."""
    after = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = after <= m
    stop = tl.load(offsets + after, mask=inside, other=0)
    count = stop - tl.load(offsets + after - 1, mask=inside & (after > 0), other=0)
    split = (after > 0) & (count > above)
    tl.store(pieces + after, tl.where(split, (count + size - 1) // size, 0), mask=inside)


@triton.jit
@no_type_check
def _owners_kernel(first, latent, capacity, m, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """The latent of each slice."""
    piece = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    owner = _n_below(first, m + 1, piece + 1, STEPS) - 1
    tl.store(latent + piece, owner, mask=piece < capacity)


def pairs_by_latent(indices: Int[Tensor, "*entry"], d_sae: int) -> LatentPairs:
    """See `saelab.kernels.torch.pairs.pairs_by_latent`."""
    flat = indices.flatten()
    shift, dtype = sort_key(d_sae)
    keys = torch.sub(flat, shift, out=flat.new_empty(len(flat), dtype=dtype))
    keys, order = torch.sort(keys, stable=True)
    offsets = keys.new_empty(d_sae + 1, dtype=torch.int32)
    _offsets_kernel[(ceil_div(d_sae + 1, BLOCK),)](
        keys, offsets, len(keys), d_sae, shift, STEPS=len(keys).bit_length(), BLOCK=BLOCK
    )
    return LatentPairs(order, offsets)


def heavy_slices(pairs: LatentPairs, size: int, above: int) -> Slices:
    """See `saelab.kernels.torch.pairs.heavy_slices`."""
    m, offsets = pairs.d_sae, pairs.offsets
    pieces, latent = torch.empty_like(offsets), offsets.new_empty(pairs.capacity(size, above))
    _pieces_kernel[(ceil_div(m + 1, BLOCK),)](offsets, pieces, m, size, above, BLOCK=BLOCK)
    first = torch.cumsum(pieces, 0, dtype=torch.int32)
    _owners_kernel[(ceil_div(len(latent), BLOCK),)](
        first, latent, len(latent), m, STEPS=(m + 1).bit_length(), BLOCK=BLOCK
    )
    return Slices(size, first, latent)

# ruff: noqa: ANN001, ANN201, PLR0913 - Triton kernels take pointers, which have no Python type.
# pyright: reportMissingParameterType=false, reportCallIssue=false
"""The n-th largest of very many numbers, digit by digit, from counts that no order can change."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Int
from torch import Tensor

from saelab.kernels.triton_select import order_key


@triton.jit
@no_type_check
def order_bits(values, valid, BITS: tl.constexpr):
    """Integers that sort as the values do; the upper half says it all for bfloat16."""
    key = order_key(values, valid)
    return key >> (32 - BITS)


@triton.jit
@no_type_check
def digits(key, prefix, valid, SHIFT: tl.constexpr, TOP: tl.constexpr):
    """The eight bits at SHIFT, upwards from 0; 256 where the bits above are not the prefix."""
    digit = (key >> SHIFT) + 128
    if not TOP:
        digit = (key >> SHIFT) & 255
        valid = valid & ((key >> (SHIFT + 8)) == prefix)
    return tl.where(valid, digit, 256)


@triton.jit
@no_type_check
def count_kernel(
    values, n, state, counts, SHIFT: tl.constexpr, TOP: tl.constexpr, BITS: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """How often each digit occurs among all values."""
    at = tl.program_id(0).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    valid = at < n
    key = order_bits(tl.load(values + at, mask=valid, other=0.0).to(tl.float32), valid, BITS)
    found = tl.histogram(digits(key, tl.load(state), valid, SHIFT, TOP), 512)
    bin_ = tl.arange(0, 512)
    tl.atomic_add(counts + bin_, found, mask=(found > 0) & (bin_ < 256))


@triton.jit
@no_type_check
def pick_kernel(counts, state, TOP: tl.constexpr):
    """The digit of the wanted entry, and its rank among those that share it so far."""
    digit = tl.arange(0, 256)
    count = tl.load(counts + digit)
    above = tl.sum(count) - tl.cumsum(count)
    prefix, rank = tl.load(state), tl.load(state + 1)
    here = (above < rank) & (rank <= above + count)
    found = tl.sum(tl.where(here, digit, 0))
    tl.store(state, found - 128 if TOP else (prefix << 8) | found)
    tl.store(state + 1, rank - tl.sum(tl.where(here, above, 0)))


def search_state(
    n: int, bits: int, device: torch.device
) -> tuple[Int[Tensor, " 2"], Int[Tensor, "round 256"]]:
    """Nothing known of the n-th largest yet."""
    state = torch.zeros(2, dtype=torch.int32, device=device)
    state[1:].fill_(n)
    return state, state.new_zeros(bits // 8, 256)

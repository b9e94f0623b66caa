# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""Finding every entry above its latent's threshold, and the entries in a window below it.

One read of the pre-activations counts the entries and writes a bit for each. Then their number is
known, and memory for all of them is chosen before they are written.
"""

from dataclasses import dataclass
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.sizes import ceil_div

BITS = 32
WORDS = 32
"""Words of bits that a warp makes at a time."""
ROWS = 16
"""Rows that a program processes with the same thresholds in its registers."""
BLOCK = 256
"""Entries that a program writes."""


@triton.jit
@no_type_check
def _ones(x):
    """The number of set bits in 32-bit integers."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    x = x + (x >> 8)
    return (x + (x >> 16)) & 63


@triton.jit
@no_type_check
def _mark_kernel(
    pre_acts,
    thresholds,
    half,
    marks,
    before,
    counts,
    batch,
    m,
    WORDS: tl.constexpr,
    ROWS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """WORDS words of bits for each of ROWS rows; the set bits before them, and in total.

    An entry is marked (on, or off in the window) if a - threshold > -half.
    """
    n = tl.cdiv(m, 32)
    blocks = tl.cdiv(n, WORDS)
    block = tl.program_id(0) % blocks
    row = ((tl.program_id(0) // blocks) * ROWS).to(tl.int64)
    stop = tl.minimum(row + ROWS, batch)
    word = block * WORDS + tl.arange(0, WORDS)
    bit = tl.arange(0, 32)[None, :]
    at = word[:, None] * 32 + bit
    inside = (at < m) | EVEN
    threshold = tl.load(thresholds + at, mask=inside, other=0.0)
    while row < stop:
        a = tl.load(pre_acts + row * m + at, mask=inside, other=float("-inf")).to(tl.float32)
        here = (a - threshold > -half).to(tl.int32)
        marked = tl.sum(here << bit, 1)
        number = _ones(marked)
        tl.store(marks + row * n + word, marked, mask=(word < n) | EVEN)
        tl.store(before + row * n + word, tl.cumsum(number) - number, mask=(word < n) | EVEN)
        tl.store(counts + row * blocks + block, tl.sum(number))
        row += 1


@triton.jit
@no_type_check
def _place_of(place, there, scan, m, WORDS: tl.constexpr, STEPS: tl.constexpr):
    """The row and the latent of the entries with the running numbers `place`, by bisection."""
    marks, before, starts, n_blocks = scan
    n = tl.cdiv(m, 32)
    blocks = tl.cdiv(n, WORDS)
    block = tl.zeros_like(place)
    for done in range(STEPS):
        further = block + (tl.full([], 1, tl.int32) << (STEPS - 1 - done))
        known = there & (further < n_blocks)
        start = tl.load(starts + further, mask=known, other=0)
        block = tl.where(known & (start <= place), further, block)
    rank = place - tl.load(starts + block, mask=there, other=0).to(tl.int32)
    row = (block // blocks).to(tl.int64)
    word = (block % blocks) * WORDS
    last = tl.minimum(word + WORDS, n) - 1
    for done in tl.static_range(5):
        further = word + (16 >> done)
        known = there & (further <= last)
        so_far = tl.load(before + row * n + further, mask=known, other=0).to(tl.int32)
        word = tl.where(known & (so_far <= rank), further, word)
    rank -= tl.load(before + row * n + word, mask=there, other=0).to(tl.int32)
    marked = tl.load(marks + row * n + word, mask=there, other=0)
    bit = tl.zeros_like(place)
    for done in tl.static_range(5):
        lower = _ones(marked & ((1 << (16 >> done)) - 1))
        above = rank >= lower
        rank -= tl.where(above, lower, 0)
        bit += tl.where(above, 16 >> done, 0)
        marked = tl.where(above, marked >> (16 >> done), marked)
    return row, word * 32 + bit


@triton.jit
@no_type_check
def _write_kernel(
    pre_acts,
    thresholds,
    marks,
    before,
    starts,
    values,
    indices,
    rows,
    keys,
    n_blocks,
    size,
    m,
    WORDS: tl.constexpr,
    STEPS: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The next BLOCK entries; beyond the last entry, zeros, with keys that sort last."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = place < tl.minimum(tl.load(starts + n_blocks), size)
    row, at = _place_of(place, there, (marks, before, starts, n_blocks), m, WORDS, STEPS)
    a = tl.load(pre_acts + row * m + at, mask=there, other=0.0).to(tl.float32)
    on = a > tl.load(thresholds + at, mask=there, other=0.0)
    tl.store(values + place, tl.where(on, a, 0.0), mask=place < size)
    tl.store(indices + place, at, mask=there)
    tl.store(rows + place, row.to(tl.int32), mask=there)
    key = tl.where(there, tl.where(on, at, at + m), 2 * m - 1)
    tl.store(keys + place, key - SHIFT, mask=place < size)


class Entries(NamedTuple):
    """Where entries are written, row after row.

    Attributes:
        values: values of entries that are on; 0 for entries that are off.
        indices: latent of each entry.
        rows: row of each entry.
        keys: the latent, plus d_sae if the entry is off.
    """

    values: Float[Tensor, " entry"]
    indices: Int[Tensor, " entry"]
    rows: Int[Tensor, " entry"]
    keys: Int[Tensor, " entry"]


@dataclass(frozen=True)
class Scan:
    """Where the entries of a batch are; any number of them.

    Attributes:
        marks: a bit for each pre-activation.
        before: number of marks before each word, within its block of words.
        counts: of each block of words.
        block_starts: number of marks before each block, and the total.
        starts: number of marks before each row; valid below 2^31.
        width: of the window.
    """

    marks: Int[Tensor, "batch word"]
    before: Int[Tensor, "batch word"]
    counts: Int[Tensor, "batch block"]
    block_starts: Int[Tensor, " batch_block_1"]
    starts: Int[Tensor, " batch_1"]
    width: float

    @classmethod
    def empty(cls, batch: int, d_sae: int, width: float, device: torch.device) -> "Scan":
        """Memory for this many rows."""
        n = ceil_div(d_sae, BITS)
        marks = torch.zeros(batch, n, dtype=torch.int32, device=device)
        counts = marks.new_zeros(batch, ceil_div(n, WORDS))
        starts = counts.new_zeros(batch + 1)
        block_starts = counts.new_zeros(counts.numel() + 1, dtype=torch.int64)
        return cls(marks, marks.to(torch.int16), counts, block_starts, starts, width)

    @property
    def total(self) -> Int[Tensor, ""]:
        """The number of entries."""
        return self.block_starts[-1]

    def count(
        self, pre_acts: Float[Tensor, "batch d_sae"], thresholds: Float[Tensor, " d_sae"]
    ) -> None:
        """Mark and count the entries."""
        (batch, m), blocks = pre_acts.shape, self.counts.shape[1]
        _mark_kernel[(ceil_div(batch, ROWS) * blocks,)](
            pre_acts, thresholds, self.width / 2, self.marks, self.before, self.counts, batch, m,
            WORDS=WORDS, ROWS=ROWS, EVEN=m % (WORDS * BITS) == 0, num_warps=1,
        )  # fmt: skip
        torch.cumsum(self.counts.flatten(), 0, dtype=torch.int64, out=self.block_starts[1:])
        self.starts.copy_(self.block_starts[::blocks])

    def write(
        self,
        pre_acts: Float[Tensor, "batch d_sae"],
        thresholds: Float[Tensor, " d_sae"],
        out: Entries,
        shift: int,
    ) -> None:
        """Write the marked entries; `out` must have room for them.

        Args:
            pre_acts: the same as in `count`.
            thresholds: the same.
            out: receives the entries.
            shift: subtracted from the keys; keys of unused places sort last.
        """
        m, size, n_blocks = pre_acts.shape[1], len(out.values), self.counts.numel()
        _write_kernel[(ceil_div(size, BLOCK),)](
            pre_acts, thresholds, self.marks, self.before, self.block_starts, *out, n_blocks, size,
            m, WORDS=WORDS, STEPS=n_blocks.bit_length(), SHIFT=shift, BLOCK=BLOCK,
        )  # fmt: skip

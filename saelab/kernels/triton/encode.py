# ruff: noqa: ANN001, ANN201, PLR0913 - Triton kernels take pointers, which have no Python type.
"""Pre-activations by a product whose end also finds the largest entry of each segment.

Selection begins with these maxima, for which it else reads all pre-activations once. Tiles are
handed out to as many programs as the device has processors; each loads the next tile's numbers
while it ends the last one.
"""

from functools import cache
from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from saelab.kernels.rules import FusedRule
from saelab.kernels.sizes import ceil_div, gram_pays, segment_width, segments
from saelab.kernels.triton.select.rows import Maxima, PreActs
from saelab.kernels.triton.weights import Weights

HOPPER = (9, 0)
"""The first devices whose memory is copied in blocks, without which this is slower."""
ALIGNED = 16
"""A row's bytes must be a multiple of this."""


class Tiles(NamedTuple):
    """The shape of the work. Chosen on an H200; see the kernels' README."""

    rows: int = 128
    columns: int = 256
    depth: int = 64
    wave: int = 8
    """Blocks of columns that are done together, over all rows."""
    stages: int = 3
    warps: int = 8


TILES = Tiles()


@triton.jit
@no_type_check
def product_kernel(
    x, W, out, bias, maxima, batch, m, n_segments, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, WAVE: tl.constexpr, SEGMENT: tl.constexpr, PROGRAMS: tl.constexpr,
    TURNS: tl.constexpr, STEPS: tl.constexpr, EVEN: tl.constexpr, MAGNITUDE: tl.constexpr,
):  # fmt: skip
    """Tiles of x W^T + bias, and of the maxima of its segments."""
    high, wide = tl.cdiv(batch, ROWS), tl.cdiv(m, COLUMNS)
    for turn in tl.range(0, TURNS, flatten=True):
        # Programs without a tile in the last turn do the last tile again.
        tile = tl.minimum(tl.program_id(0) + turn * PROGRAMS, high * wide - 1)
        first = tile // (WAVE * high) * WAVE
        across = tl.minimum(wide - first, WAVE)
        within = tile % (WAVE * high)
        row = within // across * ROWS
        column = (first + within % across) * COLUMNS
        total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for done in range(STEPS):
            left = x.load([row, done * DEPTH])
            total = tl.dot(left, W.load([column, done * DEPTH]).T, total)
        latent = column + tl.arange(0, COLUMNS)
        inside = (latent < m) | EVEN
        total += tl.load(bias + latent, mask=inside, other=0.0).to(tl.float32)[None, :]
        rounded = total.to(tl.bfloat16)
        out.store([row, column], rounded)
        size = rounded.to(tl.float32)
        if MAGNITUDE:
            size = tl.abs(size)
        if not EVEN:
            size = tl.where(inside[None, :], size, float("-inf"))
        best = tl.max(tl.reshape(size, (ROWS, COLUMNS // SEGMENT, SEGMENT)), 2)
        token = row + tl.arange(0, ROWS)
        segment = column // SEGMENT + tl.arange(0, COLUMNS // SEGMENT)
        to = maxima + token.to(tl.int64)[:, None] * n_segments + segment[None, :]
        there = ((token < batch)[:, None] & (segment < n_segments)[None, :]) | EVEN
        tl.store(to, best, mask=there)


def finds_maxima(x: Float[Tensor, "batch d_in"], d_sae: int) -> bool:
    """Whether the product with so many latents can find the maxima on this device."""
    if not x.is_cuda or x.dtype != torch.bfloat16:
        return False
    aligned = all(n * x.element_size() % ALIGNED == 0 for n in (x.shape[1], d_sae))
    newer = torch.cuda.get_device_capability(x.device) >= HOPPER
    return newer and aligned and segment_width(d_sae) <= TILES.columns


def encode_rows(
    x: Float[Tensor, "batch d_in"],
    W: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, " d_sae"],
    out: Float[Tensor, "batch d_sae"],
    maxima: Float[Tensor, "batch segment"],
    *,
    by_magnitude: bool,
) -> None:
    """Write `x W^T + bias` to `out`, rounded, and `segment_maxima` of it to `maxima`.

    All are bfloat16; sums are float32.
    """
    (batch, d), m, tiles = x.shape, len(W), TILES
    high, wide = ceil_div(batch, tiles.rows), ceil_div(m, tiles.columns)
    programs = min(_processors(x.device), high * wide)
    block = [tiles.rows, tiles.depth], [tiles.columns, tiles.depth], [tiles.rows, tiles.columns]
    read: list[Any] = [
        TensorDescriptor.from_tensor(tensor, size)
        for tensor, size in zip((x, W, out), block, strict=True)
    ]
    product_kernel[(programs,)](
        *read, bias, maxima, batch, m, segments(m), ROWS=tiles.rows, COLUMNS=tiles.columns,
        DEPTH=tiles.depth, WAVE=tiles.wave, SEGMENT=segment_width(m), PROGRAMS=programs,
        TURNS=ceil_div(high * wide, programs), STEPS=ceil_div(d, tiles.depth),
        EVEN=batch % tiles.rows == 0 and m % tiles.columns == 0, MAGNITUDE=by_magnitude,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


class Product:
    """The step's only dense product but for AuxK's. A pursuit makes its own.

    Attributes:
        found: every pre-activation, in the dtype of the rows; none where a pursuit needs none.
    """

    def __init__(self, x: Float[Tensor, "batch d_in"], weights: Weights, rule: FusedRule) -> None:
        self._weights, self._rule, m = weights, rule, len(weights.scale)
        rounds = x.dtype != torch.float32
        chip = rule.pursues and gram_pays(len(x), m, int(rule.k), rounds=rounds)
        maxima: Maxima | None = None
        if rule.by_size and finds_maxima(x, m):
            maxima = x.new_empty(len(x), segments(m)), segment_width(m)
        self.found = PreActs(x.new_empty(0 if chip else len(x), m), maxima)

    def run(self, x: Float[Tensor, "batch d_in"]) -> None:
        """Compute them, for what the encoder reads."""
        w, (out, maxima) = self._weights, self.found
        if maxima is not None:
            given, by_magnitude = (x, w.enc.copy, w.b_enc.copy), self._rule.by_magnitude
            encode_rows(*given, out, maxima[0], by_magnitude=by_magnitude)
        elif not self._rule.pursues:
            torch.addmm(w.b_enc.copy, x, w.enc.copy.T, out=out)


@cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count

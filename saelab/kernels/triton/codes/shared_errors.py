# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""The errors of a reconstruction whose parts several processes have.

Each process decodes its own codes. Once all parts are summed, each computes the same errors, and
their products with its own atoms.
"""

from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.exchange import LatentExchange, row_pieces
from saelab.kernels.rules import FusedRule
from saelab.kernels.sizes import ceil_div
from saelab.kernels.triton.codes.ragged import ENTRIES, ENTRIES_OF_GROUP, next_entries
from saelab.kernels.triton.codes.residual import Residual, chunk_columns
from saelab.kernels.triton.weights import Decoder

Chosen = tuple[Float[Tensor, " entry"], Int[Tensor, " entry"], Int[Tensor, " batch_group_1"]]
"""Values, indices, and the start of each row's groups; entries beyond the end are ignored."""


@triton.jit
@no_type_check
def _part_kernel(
    values,
    indices,
    starts,
    scale,
    W,
    parts,
    batch,
    d,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ENTRIES: tl.constexpr,
    EVEN: tl.constexpr,
):
    """One chunk of one token: the sum of each group's atoms."""
    token = (tl.program_id(0) % batch).to(tl.int64)
    column = (tl.program_id(0) // batch) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < d) | EVEN
    codes = (values, indices, scale, W)
    for group in range(GROUPS):
        part = tl.zeros([COLUMNS], tl.float32)
        entry = tl.load(starts + token * GROUPS + group)
        stop = tl.load(starts + token * GROUPS + group + 1)
        while entry < stop:
            _, _, value, atoms = next_entries(
                codes, entry, stop, column, inside, d, ENTRIES, OFF=False
            )
            part += tl.sum(value[:, None] * atoms, 0)
            entry += ENTRIES
        tl.store(parts + (token * GROUPS + group) * d + column, part, mask=inside)


@triton.jit
@no_type_check
def _residual_kernel(
    values,
    indices,
    starts,
    scale,
    W,
    bias,
    x,
    sums,
    shares,
    residual,
    errors,
    dots,
    batch,
    d,
    n,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ENTRIES: tl.constexpr,
    EVEN: tl.constexpr,
):
    """One chunk of one token: the errors after each group, from all processes' sums.

    The sum of the errors from a group on, each times its share, goes to `residual`, and its product
    with this process's atoms of the group to `dots`.
    """
    chunks = (d + COLUMNS - 1) // COLUMNS
    token = (tl.program_id(0) % batch).to(tl.int64)
    chunk = tl.program_id(0) // batch
    column = chunk * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < d) | EVEN
    codes = (values, indices, scale, W)
    target = tl.load(x + token * d + column, mask=inside, other=0.0).to(tl.float32)
    error = tl.load(bias + column, mask=inside, other=0.0) - target
    for group in range(GROUPS):
        error += tl.load(sums + (token * GROUPS + group) * d + column, mask=inside, other=0.0)
        square = tl.sum(tl.where(inside, error * error, 0.0))
        tl.store(errors + (token * chunks + chunk) * GROUPS + group, square)
    slope = tl.zeros([COLUMNS], tl.float32)
    for back in range(GROUPS):
        group = GROUPS - 1 - back
        slope += tl.load(shares + group) * error
        tl.store(residual + (token * GROUPS + group) * d + column, slope, mask=inside)
        entry = tl.load(starts + token * GROUPS + group)
        stop = tl.load(starts + token * GROUPS + group + 1)
        while entry < stop:
            at, kept, _, atoms = next_entries(
                codes, entry, stop, column, inside, d, ENTRIES, OFF=True
            )
            dot = tl.sum(atoms * slope[None, :], 1)
            tl.store(dots + chunk.to(tl.int64) * n + at, dot, mask=kept)
            entry += ENTRIES
        error -= tl.load(sums + (token * GROUPS + group) * d + column, mask=inside, other=0.0)


@dataclass(frozen=True)
class SharedErrors:
    """The errors of a reconstruction whose parts several processes have.

    Attributes:
        sums: `[batch * group d_in]`, each group's part of the reconstruction.
        shares: weights of the groups' errors in the loss.
    """

    exchange: LatentExchange
    sums: Float[Tensor, "batch_group d_in"]
    shares: Float[Tensor, " group"]

    @classmethod
    def empty(
        cls, x: Float[Tensor, "batch d_in"], rule: FusedRule, exchange: LatentExchange
    ) -> "SharedErrors":
        """Memory for the sums of these rows."""
        shares = x.new_tensor(rule.shares, dtype=torch.float32)
        return cls(exchange, shares.new_empty(len(x) * rule.groups, x.shape[1]), shares)

    def begin(self, codes: Chosen, dictionary: Decoder) -> None:
        """Begin the sum of all processes' parts, some rows after the others."""
        for rows in row_pieces(len(self.sums) // len(self.shares)):
            self.begin_piece(codes, dictionary, rows)

    def begin_piece(self, codes: Chosen, dictionary: Decoder, rows: tuple[int, int]) -> None:
        """Begin the sum of the parts of these rows: first, and behind the last."""
        (values, indices, starts), groups, (first, end) = codes, len(self.shares), rows
        grid, shape = self._launch(end - first)
        sums = self.sums[first * groups : end * groups]
        _part_kernel[grid](
            values, indices, starts[first * groups :], dictionary.scale, dictionary.W, sums,
            end - first, sums.shape[1], **shape,
        )  # fmt: skip
        self.exchange.begin_sum(sums)

    def end(
        self, codes: Chosen, x: Float[Tensor, "batch d_in"], dictionary: Decoder, out: Residual
    ) -> None:
        """Fill `out`, except for the gradient, once the sums are there."""
        (values, indices, starts), groups = codes, len(self.shares)
        for first, end in row_pieces(len(x)):
            self.exchange.end_first()
            grid, shape = self._launch(end - first)
            rows = slice(first * groups, end * groups)
            _residual_kernel[grid](
                values, indices, starts[first * groups :], dictionary.scale, dictionary.W,
                dictionary.bias, x[first:end],
                self.sums[rows], self.shares, out.residual[rows], out.errors[first:end], out.dots,
                end - first, x.shape[1], len(values), **shape,
            )  # fmt: skip

    def _launch(self, rows: int) -> tuple[tuple[int], dict[str, int | bool]]:
        d, groups = self.sums.shape[1], len(self.shares)
        columns = chunk_columns(d)
        entries = ENTRIES if groups == 1 else ENTRIES_OF_GROUP
        even = d % columns == 0
        shape = {"GROUPS": groups, "COLUMNS": columns, "ENTRIES": entries, "EVEN": even}
        return (rows * ceil_div(d, columns),), {**shape, "num_warps": 1}

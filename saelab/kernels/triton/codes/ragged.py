# ruff: noqa: ANN001, ANN201, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""Codes in rows of different lengths: selected over the batch, decoded, and differentiated."""

from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.sizes import ceil_div
from saelab.kernels.torch.pairs import LatentPairs
from saelab.kernels.torch.threshold import follow_smallest_, follow_smallest_of_each_
from saelab.kernels.torch.zipf import ColumnBudgets
from saelab.kernels.triton.codes.residual import Residual, chunk_columns, code_gradients
from saelab.kernels.triton.pairs import pairs_by_latent
from saelab.kernels.triton.select.batch import FlatPlace, select_batch_top_k
from saelab.kernels.triton.select.columns import select_column_top_k
from saelab.kernels.triton.select.rows import PreActs
from saelab.kernels.triton.weights import Decoder, Weights

ENTRIES = 16
ENTRIES_OF_GROUP = 4
"""Codes of a row, or of one of its groups, whose atoms are in registers at a time."""


@triton.jit
@no_type_check
def next_entries(codes, entry, stop, column, inside, d, ENTRIES: tl.constexpr, OFF: tl.constexpr):
    """The next entries of a row: which exist, their values, and a chunk of their atoms.

    Without OFF the atoms of entries that are off are not read, but zero: three quarters of what a
    JumpReLU step keeps may be off.
    """
    values, indices, scale, W = codes
    at = entry + tl.arange(0, ENTRIES)
    kept = at < stop
    latent = tl.load(indices + at, mask=kept, other=0).to(tl.int64)
    value = tl.load(values + at, mask=kept, other=0.0)
    read = kept if OFF else value != 0
    value *= tl.load(scale + latent, mask=kept, other=0.0)
    there = read[:, None] & inside[None, :]
    atoms = tl.load(W + latent[:, None] * d + column[None, :], mask=there, other=0.0)
    return at, kept, value, atoms.to(tl.float32)


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
    residual,
    errors,
    dots,
    batch,
    d,
    n,
    share,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ENTRIES: tl.constexpr,
    EVEN: tl.constexpr,
):
    """One chunk of one token: the errors after each group of latents, and their gradients.

    The error after each group, x_hat - x, is squared. Then the groups are added back one by one.
    The sum of the errors from a group on, times `share`, goes to `residual`, and its product with
    the group's atoms to `dots`.
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
        entry = tl.load(starts + token * GROUPS + group)
        stop = tl.load(starts + token * GROUPS + group + 1)
        while entry < stop:
            _, _, value, atoms = next_entries(
                codes, entry, stop, column, inside, d, ENTRIES, OFF=False
            )
            error += tl.sum(value[:, None] * atoms, 0)
            entry += ENTRIES
        square = tl.sum(tl.where(inside, error * error, 0.0))
        tl.store(errors + (token * chunks + chunk) * GROUPS + group, square)
    slope = tl.zeros([COLUMNS], tl.float32)
    for back in range(GROUPS):
        group = GROUPS - 1 - back
        slope += share * error
        tl.store(residual + (token * GROUPS + group) * d + column, slope, mask=inside)
        entry = tl.load(starts + token * GROUPS + group)
        stop = tl.load(starts + token * GROUPS + group + 1)
        while entry < stop:
            # Read again, from the cache, now that the error is known.
            at, kept, value, atoms = next_entries(
                codes, entry, stop, column, inside, d, ENTRIES, OFF=True
            )
            dot = tl.sum(atoms * slope[None, :], 1)
            tl.store(dots + chunk.to(tl.int64) * n + at, dot, mask=kept)
            if GROUPS > 1:
                error -= tl.sum(value[:, None] * atoms, 0)
            entry += ENTRIES


def ragged_errors(
    codes: tuple[Float[Tensor, " entry"], Int[Tensor, " entry"], Int[Tensor, " batch_group_1"]],
    x: Float[Tensor, "batch d_in"],
    dictionary: Decoder,
    out: Residual,
    share: float,
) -> None:
    """Fill `out`, except for the gradient.

    Args:
        codes: values, indices, and the start of each row's groups; entries beyond the end are
            ignored.
        x: rows to reconstruct.
        dictionary: the atoms.
        out: receives the results.
        share: weight of each prefix's error in the loss.
    """
    (batch, d), columns, groups = x.shape, chunk_columns(x.shape[1]), out.errors.shape[2]
    _residual_kernel[(batch * ceil_div(d, columns),)](
        *codes, dictionary.scale, dictionary.W, dictionary.bias, x, *out[:3], batch, d,
        len(codes[0]), share, GROUPS=groups, COLUMNS=columns, EVEN=d % columns == 0,
        ENTRIES=ENTRIES if groups == 1 else ENTRIES_OF_GROUP, num_warps=1,
    )  # fmt: skip


@dataclass
class ColumnChoice:
    """How latents choose their rows.

    Attributes:
        budgets: how many rows each rank keeps.
        counts: the same on the device.
        on: whether they choose already, or the batch keeps its largest entries.
    """

    budgets: ColumnBudgets
    counts: Int[Tensor, " d_sae"]
    on: bool = False


@dataclass(frozen=True)
class Ragged:
    """The largest codes of a whole batch, in a fixed total number. See `step.codes`.

    With groups of latents, the loss counts the error of every prefix of the groups
    (arXiv 2503.17547).

    Attributes:
        values: values of all rows, one after the other.
        indices: latents of the entries.
        starts: starts of all rows' groups in order, and the end.
        error_rows: the group of each entry, counted over all rows.
        lows: the first latent of each group of latents.
        group_numbers: numbers 0, 1, ... of the groups of all rows.
        residual: result of the decode.
        signed: whether codes are selected by magnitude with their signs, or rectified.
        share: weight of each prefix's error in the loss.
        columns: how latents choose their rows, if they ever do.
    """

    values: Float[Tensor, " entry"]
    indices: Int[Tensor, " entry"]
    starts: Int[Tensor, " batch_group_1"]
    error_rows: Int[Tensor, " entry"]
    lows: Int[Tensor, " group"]
    group_numbers: Int[Tensor, " batch_group"]
    residual: Residual
    signed: bool
    share: float
    columns: ColumnChoice | None = None

    @classmethod
    def empty(
        cls,
        x: Float[Tensor, "batch d_in"],
        n: int,
        groups: int,
        *,
        signed: bool,
        share: float,
        columns: ColumnBudgets | None = None,
    ) -> "Ragged":
        """Memory for n codes of these rows."""
        values = torch.zeros(n, dtype=torch.float32, device=x.device)
        indices = values.new_zeros(n, dtype=torch.int32)
        starts = indices.new_full((len(x) * groups + 1,), n)
        lows = starts.new_zeros(groups)
        numbers = torch.arange(len(starts) - 1, dtype=torch.int32, device=x.device)
        residual = Residual.empty(x, n, columns=chunk_columns(x.shape[1]), groups=groups)
        rows = indices.clone()
        choice = None if columns is None else ColumnChoice(columns, columns.counts.to(x.device))
        return cls(values, indices, starts, rows, lows, numbers, residual, signed, share, choice)

    @property
    def k(self) -> int:
        """See `Codes.k`: rows differ in length."""
        return 0

    def select(self, found: PreActs, weights: Weights) -> None:
        """See `Codes.select`; the weights' threshold follows the smallest active code."""
        place = FlatPlace(self.values, self.indices, self.error_rows, self.lows)
        columns = self.columns
        if columns is not None and columns.on:
            assert weights.usage is not None
            ranked = weights.usage.ranked()
            select_column_top_k(
                found.values, ranked, columns.budgets, counts=columns.counts, out=place
            )
        else:
            n, (pre_acts, maxima) = len(self.values), found
            select_batch_top_k(pre_acts, n, by_magnitude=self.signed, maxima=maxima, out=place)
        if columns is None:
            follow_smallest_(weights.threshold, self.values)
        else:
            follow_smallest_of_each_(weights.threshold, self.values, self.indices)
        # A row's entries are sorted by latent, so its groups are consecutive.
        self.starts[:-1] = torch.searchsorted(self.error_rows, self.group_numbers, out_int32=True)

    def decode(self, x: Float[Tensor, "batch d_in"], dictionary: Decoder, *, factor: float) -> None:
        """See `Codes.decode`."""
        out = self.residual
        ragged_errors((self.values, self.indices, self.starts), x, dictionary, out, self.share)
        code_gradients(
            self.values, self.indices, dictionary.scale, out, factor=factor, signed=self.signed
        )

    def invert(self, d_sae: int) -> LatentPairs:
        """See `Codes.invert`."""
        return pairs_by_latent(self.indices, d_sae)

    def kept(self) -> tuple[Float[Tensor, " entry"], Int[Tensor, " entry"]]:
        """See `Codes.kept`."""
        return self.values, self.indices

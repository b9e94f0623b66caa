# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""Rows of ranked codes with several reconstructions (HierarchicalTopK, Multi-TopK)."""

from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.sizes import ceil_div
from saelab.kernels.torch.pairs import LatentPairs
from saelab.kernels.triton.codes.residual import Residual, chunk_columns, code_gradients
from saelab.kernels.triton.pairs import pairs_by_latent
from saelab.kernels.triton.select.rows import PreActs, select_top_k
from saelab.kernels.triton.weights import Decoder, Weights

UNROLL = 8
"""Ranks whose atoms may be loaded at a time."""


@triton.jit
@no_type_check
def _rank(values, indices, scale, W, entry, column, inside, d):
    """A code times its atom's scale, and a chunk of the atom."""
    latent = tl.load(indices + entry).to(tl.int64)
    value = tl.load(values + entry) * tl.load(scale + latent)
    return value, tl.load(W + latent * d + column, mask=inside, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _nested_kernel(
    values,
    indices,
    group_of,
    scale,
    W,
    bias,
    x,
    residual,
    errors,
    dots,
    shares,
    batch,
    d,
    k: tl.constexpr,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """One chunk of one token: the errors of all budgets, and their gradients in the loss.

    The forward loop subtracts atom by atom from the error. The backward loop adds them back, and
    sums the errors of all budgets from each rank on.
    """
    chunks = (d + COLUMNS - 1) // COLUMNS
    token = (tl.program_id(0) % batch).to(tl.int64)
    chunk = tl.program_id(0) // batch
    column = chunk * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < d) | EVEN
    target = tl.load(x + token * d + column, mask=inside, other=0.0).to(tl.float32)
    error = tl.load(bias + column, mask=inside, other=0.0) - target
    to_errors = errors + (token * chunks + chunk) * GROUPS
    for rank in tl.range(0, k, loop_unroll_factor=UNROLL):
        value, atom = _rank(values, indices, scale, W, token * k + rank, column, inside, d)
        error += value * atom
        # Groups of ranks end at the budgets; values stored before a group's end are overwritten.
        group = rank if k == GROUPS else tl.load(group_of + rank)
        tl.store(to_errors + group, tl.sum(error * error))
    slope = tl.zeros([COLUMNS], tl.float32)
    to_dots = dots + (chunk.to(tl.int64) * batch + token) * k
    above = GROUPS
    for back in tl.range(0, k, loop_unroll_factor=UNROLL):
        rank = k - 1 - back
        value, atom = _rank(values, indices, scale, W, token * k + rank, column, inside, d)
        group = rank if k == GROUPS else tl.load(group_of + rank)
        slope += tl.where(group != above, tl.load(shares + group), 0.0) * error
        above = group
        tl.store(residual + (token * GROUPS + group) * d + column, slope, mask=inside)
        tl.store(to_dots + rank, tl.sum(slope * atom))
        error -= value * atom


@dataclass(frozen=True)
class NestedCodes:
    """The largest codes of each row by falling value, and the errors of all budgets.

    The loss counts every budget's error (arXiv 2505.24473). See `step.codes`.

    Attributes:
        group_of: `[k]`, the first budget that includes each rank.
        shares: weights of the budgets' errors in the loss.
        n_kept: number of codes per row that are the SAE's own; Multi-TopK uses the others only for
            training.
    """

    values: Float[Tensor, "batch k"]
    indices: Int[Tensor, "batch k"]
    error_rows: Int[Tensor, " entry"]
    residual: Residual
    group_of: Int[Tensor, " k"]
    shares: Float[Tensor, " budget"]
    n_kept: int

    @classmethod
    def empty(
        cls,
        x: Float[Tensor, "batch d_in"],
        budgets: tuple[int, ...],
        shares: tuple[float, ...],
        *,
        n_kept: int,
    ) -> "NestedCodes":
        """Memory for the codes of these rows, as many per row as the last budget."""
        batch, d = x.shape
        k, groups = budgets[-1], len(budgets)
        ranks = torch.arange(k, device=x.device)
        group_of = torch.searchsorted(ranks.new_tensor(budgets), ranks, right=True).int()
        rows = torch.arange(batch, device=x.device, dtype=torch.int32)[:, None] * groups
        residual = Residual.empty(x, batch * k, columns=chunk_columns(d), groups=groups)
        values = torch.empty(batch, k, dtype=torch.float32, device=x.device)
        indices = torch.empty(batch, k, dtype=torch.int32, device=x.device)
        weights = values.new_tensor(shares)
        error_rows = (rows + group_of).flatten()
        return cls(values, indices, error_rows, residual, group_of, weights, n_kept)

    @property
    def k(self) -> int:
        """See `Codes.k`: a row has several rows of errors."""
        return 0

    def select(self, found: PreActs, weights: Weights) -> None:
        """The largest codes of each row, ranked."""
        out = self.values, self.indices
        k, maxima = self.values.shape[1], found.maxima
        select_top_k(found.values, k, rectify=True, ordered=True, maxima=maxima, out=out)

    def decode(self, x: Float[Tensor, "batch d_in"], dictionary: Decoder, *, factor: float) -> None:
        """See `Codes.decode`."""
        (batch, k), d, out = self.values.shape, x.shape[1], self.residual
        columns = chunk_columns(d)
        _nested_kernel[(batch * ceil_div(d, columns),)](
            self.values, self.indices, self.group_of, dictionary.scale, dictionary.W,
            dictionary.bias, x, *out[:3], self.shares, batch, d,
            k=k, GROUPS=out.errors.shape[2], COLUMNS=columns, EVEN=d % columns == 0,
            UNROLL=UNROLL, num_warps=1,
        )  # fmt: skip
        code_gradients(
            self.values, self.indices, dictionary.scale, out, factor=factor, signed=False
        )

    def invert(self, d_sae: int) -> LatentPairs:
        """See `Codes.invert`."""
        return pairs_by_latent(self.indices, d_sae)

    def kept(self) -> tuple[Float[Tensor, "batch n_kept"], Int[Tensor, "batch n_kept"]]:
        """See `Codes.kept`."""
        return self.values[:, : self.n_kept], self.indices[:, : self.n_kept]

# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
# pyright: reportMissingParameterType=false, reportCallIssue=false
"""Codes of rows that differ in length: chosen over the batch, decoded, and differentiated."""

from dataclasses import dataclass
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.sizes import ceil_div, power_of_two
from saelab.kernels.threshold import follow_smallest_
from saelab.kernels.triton_batch_select import select_batch_top_k

ENTRIES = 16
"""Codes of a row whose atoms are in registers at a time."""
COLUMNS = 256


@triton.jit
@no_type_check
def _atoms(indices, W, entry, stop, column, inside, d, ENTRIES: tl.constexpr):
    """The next entries of a row: which there are, their latents, and a chunk of their atoms."""
    at = entry + tl.arange(0, ENTRIES)
    kept = at < stop
    latent = tl.load(indices + at, mask=kept, other=0).to(tl.int64)
    there = kept[:, None] & inside[None, :]
    atoms = tl.load(W + latent[:, None] * d + column[None, :], mask=there, other=0.0)
    return at, kept, latent, atoms.to(tl.float32)


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
    """One chunk of one token: what the loss makes of each group of latents' errors.

    The error after each group, x_hat - x, is squared; the sum of the errors from a group on, times
    `share`, goes to `residual`, and its product with the group's atoms to `dots`.
    """
    chunks = (d + COLUMNS - 1) // COLUMNS
    token = (tl.program_id(0) % batch).to(tl.int64)
    chunk = tl.program_id(0) // batch
    column = chunk * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < d) | EVEN
    target = tl.load(x + token * d + column, mask=inside, other=0.0).to(tl.float32)
    error = tl.load(bias + column, mask=inside, other=0.0) - target
    total = tl.zeros([COLUMNS], tl.float32)
    for group in range(GROUPS):
        entry = tl.load(starts + token * GROUPS + group)
        stop = tl.load(starts + token * GROUPS + group + 1)
        while entry < stop:
            at, kept, latent, atoms = _atoms(indices, W, entry, stop, column, inside, d, ENTRIES)
            value = tl.load(values + at, mask=kept, other=0.0)
            value *= tl.load(scale + latent, mask=kept, other=0.0)
            error += tl.sum(value[:, None] * atoms, 0)
            entry += ENTRIES
        square = tl.sum(tl.where(inside, error * error, 0.0))
        tl.store(errors + (token * chunks + chunk) * GROUPS + group, square)
        total += error
        if GROUPS > 1:
            # Errors before this group: what is to be taken off the sum of all for the next one.
            tl.store(residual + (token * GROUPS + group) * d + column, error, mask=inside)
    tl.debug_barrier()
    for group in range(GROUPS):
        row = residual + (token * GROUPS + group) * d + column
        own = tl.zeros([COLUMNS], tl.float32)
        if GROUPS > 1:
            own = tl.load(row, mask=inside, other=0.0).to(tl.float32)
        slope = (total * share).to(residual.dtype.element_ty)
        tl.store(row, slope, mask=inside)
        total -= own
        # The atoms are read again, from the cache, now that the error is known.
        entry = tl.load(starts + token * GROUPS + group)
        stop = tl.load(starts + token * GROUPS + group + 1)
        while entry < stop:
            at, kept, _, atoms = _atoms(indices, W, entry, stop, column, inside, d, ENTRIES)
            dot = tl.sum(atoms * slope.to(tl.float32)[None, :], 1)
            tl.store(dots + chunk.to(tl.int64) * n + at, dot, mask=kept)
            entry += ENTRIES


@triton.jit
@no_type_check
def _code_gradient_kernel(
    values,
    indices,
    scale,
    dots,
    gradient,
    factor,
    n,
    CHUNKS: tl.constexpr,
    SIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sum of the chunks' products, with the atom's scale; none where the rectifier is off."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    kept = at < n
    total = tl.zeros([BLOCK], tl.float32)
    for chunk in range(CHUNKS):
        total += tl.load(dots + chunk * n + at, mask=kept, other=0.0)
    total *= tl.load(scale + tl.load(indices + at, mask=kept, other=0), mask=kept, other=0.0)
    if not SIGNED:
        total = tl.where(tl.load(values + at, mask=kept, other=0.0) > 0, total, 0.0)
    tl.store(gradient + at, total * factor, mask=kept)


class RaggedResidual(NamedTuple):
    """What `decode_ragged_residual` writes, all of it anew.

    Attributes:
        residual: `[batch * group d_in]`, the errors x_hat - x from each group on, summed, and
            multiplied by `share`.
        errors: `[batch chunk group]`, the squared norm of each group's error in pieces.
        dots: `[chunk entry]`, products of the residual's and W's rows in pieces.
        gradient: `[entry]`, of the codes.
    """

    residual: Float[Tensor, "batch_group d_in"]
    errors: Float[Tensor, "batch chunk group"]
    dots: Float[Tensor, "chunk entry"]
    gradient: Float[Tensor, " entry"]

    @classmethod
    def empty(cls, x: Float[Tensor, "batch d_in"], n: int, groups: int) -> "RaggedResidual":
        """Room for the residual of x, in x's type, and float32 for the rest."""
        batch, d = x.shape
        chunks = ceil_div(d, _columns(d))
        errors = x.new_empty(batch, chunks, groups, dtype=torch.float32)
        dots = errors.new_empty(chunks, n)
        return cls(x.new_empty(batch * groups, d), errors, dots, errors.new_empty(n))


def _columns(d: int) -> int:
    return min(COLUMNS, max(16, power_of_two(d)))


def decode_ragged_residual(
    x: Float[Tensor, "batch d_in"],
    codes: tuple[Float[Tensor, " entry"], Int[Tensor, " entry"], Int[Tensor, " batch_group_1"]],
    W: Float[Tensor, "d_sae d_in"],
    scale: Float[Tensor, " d_sae"],
    bias: Float[Tensor, " d_in"],
    *,
    factor: float,
    share: float,
    signed: bool,
    out: RaggedResidual,
) -> None:
    """Decode with atoms `scale * W`, and differentiate the errors of all prefixes by the codes.

    A prefix is a token's groups up to one of them (arXiv 2503.17547); with one group it is all. The
    loss is `factor / 2 * share` times the sum over tokens and prefixes of ||x_hat - x||^2.

    Args:
        x: what to reconstruct.
        codes: values, indices, and where each token's groups begin, one after the other, and the
            end.
        W: atoms.
        scale: of each atom.
        bias: of the decoder.
        factor: of the loss.
        share: of the loss, in the residual too.
        signed: whether codes have a gradient everywhere, or only where positive.
        out: what is written.
    """
    values, indices, starts = codes
    batch, d = x.shape
    n, columns = len(values), _columns(d)
    _residual_kernel[(batch * ceil_div(d, columns),)](
        values, indices, starts, scale, W, bias, x, *out[:3], batch, d, n, share,
        GROUPS=out.errors.shape[2], COLUMNS=columns, ENTRIES=ENTRIES, EVEN=d % columns == 0,
        num_warps=1,
    )  # fmt: skip
    block = 256
    _code_gradient_kernel[(ceil_div(n, block),)](
        values, indices, scale, out.dots, out.gradient, factor, n,
        CHUNKS=len(out.dots), SIGNED=signed, BLOCK=block,
    )  # fmt: skip


@dataclass(frozen=True)
class Ragged:
    """Codes of rows that differ in length, their number in all fixed, and what is made of them.

    Attributes:
        values: of all rows, one after the other.
        indices: which latents.
        starts: where each row's groups begin, one after the other, and the end.
        error_rows: the group of each entry, counted over all rows.
        lows: the first latent of each group of latents.
        residual: of the decode.
    """

    values: Float[Tensor, " entry"]
    indices: Int[Tensor, " entry"]
    starts: Int[Tensor, " batch_group_1"]
    error_rows: Int[Tensor, " entry"]
    lows: Int[Tensor, " group"]
    residual: RaggedResidual

    @classmethod
    def empty(cls, x: Float[Tensor, "batch d_in"], n: int, groups: int) -> "Ragged":
        """Room for n codes of these rows."""
        values = torch.zeros(n, dtype=torch.float32, device=x.device)
        indices = values.new_zeros(n, dtype=torch.int32)
        starts = indices.new_full((len(x) * groups + 1,), n)
        lows = starts.new_zeros(groups, dtype=torch.int64)
        residual = RaggedResidual.empty(x, n, groups)
        return cls(values, indices, starts, indices.clone(), lows, residual)

    def select(
        self,
        pre_acts: Float[Tensor, "batch d_sae"],
        *,
        signed: bool,
        threshold: Float[Tensor, ""],
    ) -> None:
        """The largest of the whole batch; `threshold` follows the smallest of them that fires."""
        n = len(self.values)
        found = select_batch_top_k(pre_acts, n, by_magnitude=signed)
        self.values.copy_(found.values)
        self.indices.copy_(found.indices)
        entries = torch.arange(n, device=pre_acts.device)
        token = torch.searchsorted(found.offsets, entries, right=True) - 1
        batch, m = pre_acts.shape
        # A row's entries are in the order of the latents, so its groups are stretches of it.
        first = torch.arange(batch, device=pre_acts.device)[:, None] * m + self.lows
        self.starts[:-1] = torch.searchsorted(token * m + found.indices, first.flatten())
        self.error_rows.copy_(torch.searchsorted(self.starts, entries.int(), right=True) - 1)
        follow_smallest_(threshold, found.values)

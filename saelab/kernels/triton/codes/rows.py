# ruff: noqa: ANN001, ANN202, PLR0913 - Triton kernels take pointers, which have no Python type.
"""Codes with k latents per row: selected, decoded, and differentiated."""

from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.sizes import ceil_div, power_of_two
from saelab.kernels.torch.pairs import LatentPairs
from saelab.kernels.triton.codes.residual import Residual, code_gradients, tile_columns, tile_warps
from saelab.kernels.triton.pairs import pairs_by_latent
from saelab.kernels.triton.select.effects import Effects
from saelab.kernels.triton.select.rows import PreActs, segment_maxima, select_top_k
from saelab.kernels.triton.select.ties import TieFactors, settle_ties
from saelab.kernels.triton.weights import Decoder, Weights


@triton.jit
@no_type_check
def _residual_kernel(
    values,
    indices,
    scale,
    W,
    bias,
    x,
    residual,
    errors,
    dots,
    batch,
    d,
    k: tl.constexpr,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """One chunk of one token: x_hat - x, its square, and its product with each row of W."""
    chunks = (d + COLUMNS - 1) // COLUMNS
    token = (tl.program_id(0) % batch).to(tl.int64)
    chunk = tl.program_id(0) // batch
    slot = tl.arange(0, K)
    # Masks known to be true at compile time cost nothing.
    kept = (slot < k) | (k == K)
    latent = tl.load(indices + token * k + slot, mask=kept, other=0).to(tl.int64)
    value = tl.load(values + token * k + slot, mask=kept, other=0.0)
    value *= tl.load(scale + latent, mask=kept, other=0.0)
    column = chunk * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < d) | EVEN
    there = kept[:, None] & inside[None, :]
    atoms = tl.load(W + latent[:, None] * d + column[None, :], mask=there, other=0.0)
    target = tl.load(x + token * d + column, mask=inside, other=0.0).to(tl.float32)
    error = tl.load(bias + column, mask=inside, other=0.0) - target
    error += tl.sum(value[:, None] * atoms.to(tl.float32), 0)
    tl.store(residual + token * d + column, error, mask=inside)
    tl.store(errors + token * chunks + chunk, tl.sum(error * error))
    dot = tl.sum(atoms.to(tl.float32) * error[None, :], 1)
    tl.store(dots + (chunk * batch + token) * k + slot, dot, mask=kept)


@dataclass(frozen=True)
class RowCodes:
    """The k largest codes of each row. See `step.codes`.

    Attributes:
        signed: whether codes keep their signs, or are rectified.
        by_magnitude: whether they are selected by it, or by value.
        left: how many of the k are codes, if this changes; the others are zero.
        effects: effects that also decide the selection; None if only values do.
        ties: the factors of the pre-activations, if they resolve ties between rounded ones.
    """

    values: Float[Tensor, "batch k"]
    indices: Int[Tensor, "batch k"]
    residual: Residual
    signed: bool
    by_magnitude: bool
    left: Int[Tensor, ""] | None
    effects: Effects | None
    ties: TieFactors | None

    @classmethod
    def empty(
        cls,
        x: Float[Tensor, "batch d_in"],
        k: int,
        *,
        signed: bool,
        by_value: bool = False,
        falls: bool = False,
        effects: Effects | None = None,
        ties: TieFactors | None = None,
    ) -> "RowCodes":
        """Memory for the codes of these rows."""
        values = torch.empty(len(x), k, dtype=torch.float32, device=x.device)
        residual = Residual.empty(x, len(x) * k, columns=tile_columns(x.shape[1], k))
        indices = values.to(torch.int32)
        left = indices.new_full((), k) if falls else None
        by_magnitude = signed and not by_value
        return cls(values, indices, residual, signed, by_magnitude, left, effects, ties)

    @property
    def k(self) -> int:
        """See `Codes.k`."""
        return self.values.shape[1]

    @property
    def error_rows(self) -> Int[Tensor, "batch k"]:
        """Not used: a pair's row is its index divided by k."""
        return self.indices

    def select(self, found: PreActs, weights: Weights) -> None:
        """See `Codes.select`."""
        if self.effects is not None:
            self.effects.measure(weights)
        (pre_acts, maxima), out, by_magnitude = (
            found,
            (self.values, self.indices),
            self.by_magnitude,
        )
        if maxima is None:
            maxima = segment_maxima(pre_acts, by_magnitude=by_magnitude, effects=self.effects)
        select_top_k(
            pre_acts,
            self.k,
            by_magnitude=by_magnitude,
            rectify=not self.signed,
            ordered=self.left is not None,
            effects=self.effects,
            maxima=maxima,
            out=out,
        )
        if self.ties is not None:
            settle_ties(pre_acts, *maxima, self.ties, out, by_magnitude=by_magnitude)
        self._cut_(self.values)

    def decode(self, x: Float[Tensor, "batch d_in"], dictionary: Decoder, *, factor: float) -> None:
        """See `Codes.decode`. Each atom is gathered once."""
        (batch, d), k = x.shape, self.k
        columns = tile_columns(d, k)
        _residual_kernel[(batch * ceil_div(d, columns),)](
            self.values, self.indices, dictionary.scale, dictionary.W, dictionary.bias, x,
            *self.residual[:3], batch, d,
            k=k, K=power_of_two(k), COLUMNS=columns, EVEN=d % columns == 0,
            num_warps=tile_warps(k, columns),
        )  # fmt: skip
        code_gradients(
            self.values, self.indices, dictionary.scale, self.residual, factor=factor,
            signed=self.signed,
        )  # fmt: skip
        self._cut_(self.residual.gradient.view_as(self.values))

    def _cut_(self, numbers: Float[Tensor, "batch k"]) -> None:
        """Make zero what belongs to entries that are no codes."""
        if self.left is not None:
            numbers.masked_fill_(torch.arange(self.k, device=numbers.device) >= self.left, 0.0)

    def invert(self, d_sae: int) -> LatentPairs:
        """See `Codes.invert`."""
        return pairs_by_latent(self.indices, d_sae)

    def kept(self) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
        """See `Codes.kept`."""
        return self.values, self.indices

"""Matching pursuit's codes: each is chosen from what those before it left of the row."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.kernels.torch.pairs import LatentPairs
from saelab.kernels.triton.codes.residual import Residual
from saelab.kernels.triton.pairs import pairs_by_latent
from saelab.kernels.triton.pursuit.gram import pursue_rows
from saelab.kernels.triton.pursuit.steps import slopes_back, take_step
from saelab.kernels.triton.select.rows import PreActs
from saelab.kernels.triton.weights import Decoder, Weights


@dataclass(frozen=True)
class PursuitCodes:
    """The k steps of each row. See `step.codes`.

    A row of errors belongs to a single step here: it is the gradient of the step's atom, which both
    chooses and reconstructs. `gradient` is twice that of the step's value, so that its product with
    the value is the radial part of that row.

    Attributes:
        values: the steps' values; 0 where a row takes none.
        indices: their latents; a row may choose one again.
        x: the rows, of which the decoder's bias is subtracted first.
        left: what the steps leave.
        missed: x_hat - x, which is the same with the other sign, rounded.
        to_bias: the gradient that each row sends to the decoder's bias, in the units of `missed`.
        residual: `[batch * k d_in]` rows of errors, and the errors' norms.
    """

    values: Float[Tensor, "batch k"]
    indices: Int[Tensor, "batch k"]
    x: Float[Tensor, "batch d_in"]
    left: Float[Tensor, "batch d_in"]
    missed: Float[Tensor, "batch d_in"]
    to_bias: Float[Tensor, "batch d_in"]
    residual: Residual

    @classmethod
    def empty(cls, x: Float[Tensor, "batch d_in"], k: int) -> "PursuitCodes":
        """Memory for the codes of the rows that `x` will hold."""
        left = torch.zeros_like(x, dtype=torch.float32)
        values, errors = left.new_zeros(len(x), k), left.new_empty(len(x), 1, 1)
        by_step = x.new_empty(len(x) * k, x.shape[1])
        residual = Residual(by_step, errors, left.new_empty(0, 0), left.new_empty(len(by_step)))
        return cls(values, values.long(), x, left, torch.zeros_like(x), left.clone(), residual)

    @property
    def k(self) -> int:
        """See `Codes.k`: each code has a row of errors of its own."""
        return 1

    @property
    def error_rows(self) -> Int[Tensor, "batch k"]:
        """Not used: a pair's row is its index."""
        return self.indices

    def select(self, found: PreActs, weights: Weights) -> None:
        """Take all steps. `found` receives correlations, unless a Gram matrix gives them."""
        atoms, coarse, codes = weights.dec.value, weights.dec.copy, (self.values, self.indices)
        torch.sub(self.x, weights.b_dec.value, out=self.left)
        self.values.zero_()
        self.indices.zero_()
        if len(found.values):
            rest = self.left.to(coarse.dtype, copy=True)
            for step in range(self.values.shape[1]):
                torch.mm(rest, coarse.T, out=found.values)
                take_step(found.values, atoms, self.left, rest, codes, step, 0.0)
        else:
            rounded = atoms if coarse.dtype == atoms.dtype else atoms.half()
            pursue_rows(self.left, atoms, rounded, codes, 0.0)

    def decode(self, x: Float[Tensor, "batch d_in"], dictionary: Decoder, *, factor: float) -> None:
        """See `Codes.decode`: all steps backwards."""
        out, codes, rows = self.residual, (self.values, self.indices), self.left.clone()
        self.missed.copy_(self.left).neg_()
        torch.sum(self.left.square(), 1, out=out.errors[:, 0, 0])
        self.to_bias.copy_(self.left)
        found = out.residual, out.gradient
        slopes_back(rows, self.to_bias, codes, dictionary.exact, 2 * factor, out=found)
        self.to_bias.neg_()

    def invert(self, d_sae: int) -> LatentPairs:
        """See `Codes.invert`."""
        return pairs_by_latent(self.indices, d_sae)

    def kept(self) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
        """See `Codes.kept`; a latent that a row chose again is there again."""
        return self.values, self.indices

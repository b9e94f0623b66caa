"""The values that travel between packages: activations in, sparse codes and losses out."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Figures = dict[str, float | int]
"""Named results of a measurement, JSON-ready."""


@dataclass(frozen=True)
class ActivationBatch:
    """Rows of activations, and what some variants need beside them.

    Attributes:
        x: `[batch d_in]`, the activations, in the model's own scale.
        target: `[batch d_out]`, what to reconstruct if it is not `x` (transcoders).
        grad: `[batch d_in]`, dL/dx of the summed next-token loss at the same rows (gradient SAEs).
    """

    x: Float[Tensor, "batch d_in"]
    target: Float[Tensor, "batch d_out"] | None = None
    grad: Float[Tensor, "batch d_in"] | None = None


@dataclass(frozen=True)
class SparseCodes:
    """What an encoder returns: up to k latents a row, each with its value.

    An index occurs at most once a row among the active entries. Values may be negative (signed
    codes) and an entry may be zero (a latent that was selected and did not fire).
    """

    values: Float[Tensor, "batch k"]
    indices: Int[Tensor, "batch k"]
    d_sae: int

    @property
    def active(self) -> Bool[Tensor, "batch k"]:
        """Which entries fire. The one definition of firing: the value is not zero."""
        return self.values != 0

    def dense(self) -> Float[Tensor, "batch d_sae"]:
        """The same codes with every latent written out; costs `batch * d_sae` numbers."""
        out = self.values.new_zeros(len(self.values), self.d_sae)
        return out.scatter_add(1, self.indices, self.values)

    def firing_counts(self) -> Int[Tensor, " d_sae"]:
        """In how many rows each latent fires."""
        fired = self.indices[self.active]
        return torch.bincount(fired, minlength=self.d_sae)

    def mean_l0(self) -> float:
        """Active latents a row, on average."""
        return float(self.active.sum()) / max(1, len(self.values))


@dataclass(frozen=True)
class LossTerms:
    """One training step's loss and what it is made of.

    Attributes:
        total: what is differentiated, dimensionless.
        mse_sum: squared error summed over d_in, mean over the batch, in squared activation units.
        parts: the other terms by name, as they enter `total` before their weights.
        codes: the codes of the main reconstruction (never those of an auxiliary term).
    """

    total: Float[Tensor, ""]
    mse_sum: Float[Tensor, ""]
    codes: SparseCodes
    parts: dict[str, Float[Tensor, ""]] = field(default_factory=dict)

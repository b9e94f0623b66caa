"""The values that travel between packages: activations in, sparse codes and losses out."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

Figures = dict[str, float | int]
"""Named results of a measurement, JSON-ready."""


@dataclass(frozen=True)
class ActivationBatch:
    """Rows of activations, and what some variants need beside them.

    Attributes:
        x: `[batch d_in]`, the activations, in the model's own scale.
        target: `[batch d_out]`, what to reconstruct if it is not `x` (transcoders).
        grad: dL/dx of the summed next-token loss at the same rows, in what is reconstructed
            (gradient SAEs).
    """

    x: Float[Tensor, "batch d_in"]
    target: Float[Tensor, "batch d_out"] | None = None
    grad: Float[Tensor, "batch _"] | None = None

    @property
    def wanted(self) -> Float[Tensor, "batch d_out"]:
        """What is to be reconstructed: the target, or `x` itself."""
        return self.x if self.target is None else self.target


@dataclass(frozen=True)
class SparseCodes:
    """What an encoder returns: the few latents of each row, each with its value.

    Rows of equal length are rectangular, `[batch k]`. Rows that differ in length, as selection over
    a whole batch makes them, are flat, `[entry]`, row after row, and `offsets` says where each
    starts. An index occurs at most once a row among the active entries. Values may be negative
    (signed codes) and an entry may be zero (a latent that was selected and did not fire).
    """

    values: Float[Tensor, "*entry"]
    indices: Int[Tensor, "*entry"]
    d_sae: int
    offsets: Int[Tensor, " batch"] | None = None

    def __len__(self) -> int:
        """Rows."""
        return len(self.values if self.offsets is None else self.offsets)

    @property
    def active(self) -> Bool[Tensor, "*entry"]:
        """Which entries fire. The one definition of firing: the value is not zero."""
        return self.values != 0

    def rows(self) -> Int[Tensor, "*entry"]:
        """The row of each entry."""
        row = torch.arange(len(self), device=self.values.device)
        if self.offsets is None:
            return row[:, None].expand_as(self.indices)
        counts = self.offsets.diff(append=self.offsets.new_tensor([len(self.values)]))
        return row.repeat_interleave(counts, output_size=len(self.values))

    def dense(self) -> Float[Tensor, "batch d_sae"]:
        """The same codes with every latent written out; costs `batch * d_sae` numbers."""
        out = self.values.new_zeros(len(self) * self.d_sae)
        places = (self.rows() * self.d_sae + self.indices).flatten()
        return out.scatter_add(0, places, self.values.flatten()).view(len(self), self.d_sae)

    def rectangular(self) -> "SparseCodes":
        """The same codes as `[batch width]`; shorter rows end in zeros, which do not fire."""
        if self.offsets is None:
            return self
        row = self.rows()
        slot = torch.arange(len(row), device=row.device) - self.offsets[row]
        width = int(slot.max()) + 1 if len(row) else 0
        values = self.values.new_zeros(len(self), width).index_put((row, slot), self.values)
        indices = self.indices.new_zeros(len(self), width).index_put((row, slot), self.indices)
        return SparseCodes(values, indices, self.d_sae)

    def where(self, chosen: Bool[Tensor, "*entry"]) -> "SparseCodes":
        """The chosen entries, as flat codes."""
        row = self.rows()[chosen]
        starts = torch.arange(len(self), device=row.device)
        offsets = torch.searchsorted(row, starts)
        return SparseCodes(self.values[chosen], self.indices[chosen], self.d_sae, offsets)

    def firing_counts(self) -> Int[Tensor, " d_sae"]:
        """In how many rows each latent fires."""
        fired = self.indices[self.active]
        return torch.bincount(fired, minlength=self.d_sae)

    def mean_l0(self) -> float:
        """Active latents a row, on average."""
        return float(self.active.sum()) / max(1, len(self))

    @classmethod
    def stack(cls, parts: Sequence["SparseCodes"]) -> "SparseCodes":
        """The rows of all `parts`, one after the other, as rectangular codes on the CPU."""
        parts = [part.rectangular() for part in parts]
        width = max(part.values.shape[1] for part in parts)
        values, indices = (
            torch.cat([F.pad(t.cpu(), (0, width - t.shape[1])) for t in tensors])
            for tensors in ([p.values for p in parts], [p.indices for p in parts])
        )
        return cls(values, indices, parts[0].d_sae)


@dataclass(frozen=True)
class OuterError:
    """The error of a batch whose SAE reconstructs u u^T of unit rows u, not the activations.

    Attributes:
        error: ||u u^T - X_hat||_F^2, mean over the batch; 1 if X_hat is zero.
        variance: E||u u^T - E u u^T||_F^2 over sampled rows; their quotient is an FVU.
    """

    error: Float[Tensor, ""]
    variance: Float[Tensor, ""]


@dataclass(frozen=True)
class OuterFit:
    """How well codes reconstruct u u^T of unit rows u, row by row; no matrix u u^T is formed.

    Attributes:
        u: the unit rows (a zero row stays zero).
        inner: <u u^T, X_hat>.
        square: ||X_hat||_F^2.
    """

    u: Float[Tensor, "batch d"]
    inner: Float[Tensor, " batch"]
    square: Float[Tensor, " batch"]


@dataclass(frozen=True)
class TrainingPass:
    """One pass of an SAE over a batch by its training rule, from which an objective makes a loss.

    Attributes:
        codes: the codes of the main reconstruction (never those of an auxiliary term).
        x_hat: `[batch d_out]`, the main reconstruction; None if it is no activation.
        error: what the variant minimises, in squared activation units; for most variants
            ||x - x_hat||^2 summed over d_out, mean over the batch, x being what is reconstructed.
            With `outer` it is dimensionless.
        parts: further dimensionless terms by name, each with its weight in the loss.
        outer: the main reconstruction's error if it is no activation.
    """

    codes: SparseCodes
    x_hat: Float[Tensor, "batch d_out"] | None
    error: Float[Tensor, ""]
    parts: dict[str, tuple[float, Float[Tensor, ""]]] = field(default_factory=dict)
    outer: OuterError | None = None

    @property
    def activations(self) -> Float[Tensor, "batch d_out"]:
        """`x_hat`, of a variant that reconstructs activations."""
        assert self.x_hat is not None, "decoder_problem says that it reconstructs none"
        return self.x_hat


@dataclass(frozen=True)
class LossTerms:
    """One training step's loss and what it is made of.

    Attributes:
        total: what is differentiated, dimensionless.
        mse_sum: squared error summed over d_out, mean over the batch, in squared activation units.
        parts: the other terms by name, as they enter `total` before their weights.
        codes: the codes of the main reconstruction (never those of an auxiliary term).
        variance: the variance to which `mse_sum` is compared; None: that of the rows.
    """

    total: Float[Tensor, ""]
    mse_sum: Float[Tensor, ""]
    codes: SparseCodes
    parts: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    variance: Float[Tensor, ""] | None = None

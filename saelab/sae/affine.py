"""Active latents as affine functions of the rows that an SAE encodes."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.types import SparseCodes

CHUNK = 4096
"""Active latents whose values are computed together."""


Latents = slice | Int[Tensor, " some"]
"""Which latents: their range, or their numbers."""
ALL = slice(None)
HALVES = (torch.float16, torch.bfloat16)
WIDENED_AT_ONCE = 2**24
"""Numbers of W_enc that are widened together."""


def products(
    x: Float[Tensor, "batch d_in"], W: Float[Tensor, "d_in some"], dtype: torch.dtype
) -> Float[Tensor, "batch some"]:
    """`x @ W`; if W has 16 bits and `dtype` more, in `dtype`, without a copy of the whole W."""
    if dtype == W.dtype or W.dtype not in HALVES:
        return x @ W
    x, columns = x.to(dtype), max(1, WIDENED_AT_ONCE // len(W))
    return torch.cat([x @ part.to(dtype) for part in W.split(columns, dim=1)], dim=1)


@dataclass(frozen=True)
class TakenRows:
    """Rows of a matrix, one per active latent, copied only when they are read.

    A prompt has far more active latents than the SAE has rows, so copying a row for each would take
    too much memory. Index it like a tensor; `[:]` copies all of it. They come times `factor`, a
    number or one for each coordinate.
    """

    matrix: Float[Tensor, "d_sae d"]
    number: Int[Tensor, " n"]
    dtype: torch.dtype
    factor: float | Float[Tensor, " d"] = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of all rows together."""
        return len(self.number), self.matrix.shape[1]

    def __getitem__(self, index: int | slice | list[int] | Tensor) -> Float[Tensor, "*k d"]:
        """The rows of the active latents at `index`."""
        rows = self.matrix[self.number[index]].to(self.dtype)
        return rows * self.factor


@dataclass(frozen=True)
class LinearCodes:
    """The active latents of some rows x; entry n is `values[n] = encoder[n] . x[row[n]] + c[n]`.

    Entries are sorted by row, then by latent. A latent occurs at most once per row.
    """

    row: Int[Tensor, " n"]
    latent: Int[Tensor, " n"]
    values: Float[Tensor, " n"]
    encoder: Float[Tensor, "n d_in"] | TakenRows
    constant: Float[Tensor, " n"]

    def __len__(self) -> int:
        """The number of active latents over all rows."""
        return len(self.row)

    def of_scaled(
        self, gain: Float[Tensor, " d_in"], bias: Float[Tensor, " d_in"]
    ) -> "LinearCodes":
        """The same entries as functions of the rows x * gain + bias."""
        taken, inverse = self.encoder, 1 / gain
        encoder = (
            replace(taken, factor=taken.factor * inverse)
            if isinstance(taken, TakenRows)
            else taken * inverse
        )
        constant = self.constant.clone()
        for part in torch.arange(len(self), device=constant.device).split(CHUNK):
            constant[part] -= encoder[part] @ bias
        return replace(self, encoder=encoder, constant=constant)


@dataclass(frozen=True)
class AffineEncoder:
    """a = (x - centre) @ W_enc + b_enc. An active latent has the value a, however it was chosen.

    Attributes:
        W_enc: `[d_in d_sae]`.
        b_enc: `[d_sae]`.
        centre: `[d_in]`, what is subtracted from x; None for nothing.
    """

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    centre: Float[Tensor, " d_in"] | None

    def pre_activations(
        self, x: Float[Tensor, "batch d_in"], latents: Latents = ALL
    ) -> Float[Tensor, "batch some"]:
        """The pre-activations a of all latents, or of some, in float32.

        A W_enc of 16 bits beside a float32 b_enc is widened to float32 as it is read.
        """
        x = x if self.centre is None else x - self.centre
        return products(x, self.W_enc[:, latents], self.b_enc.dtype).float() + self.b_enc[latents]

    def at(self, x: Float[Tensor, "batch d_in"], codes: SparseCodes) -> LinearCodes:
        """The active latents of `codes` with their values at `x`, in the dtype of `x`."""
        key = codes.rows()[codes.active] * codes.d_sae + codes.indices[codes.active]
        key = key.sort().values
        row, latent = key // codes.d_sae, key % codes.d_sae
        encoder, constant = TakenRows(self.W_enc.T, latent, x.dtype), self.b_enc[latent].to(x.dtype)
        parts = torch.arange(len(latent), device=latent.device).split(CHUNK)
        if self.centre is not None:
            for part in parts:
                constant[part] -= encoder[part] @ self.centre.to(x.dtype)
        values = constant.clone()
        for part in parts:
            values[part] += (encoder[part] * x[row[part]]).sum(-1)
        return LinearCodes(row, latent, values, encoder, constant)

"""An SAE at some rows as an affine map: once the active latents are fixed, each is affine in x.

For the encoders with one affine layer the row of a latent is its column of W_enc, whatever rule
chose it. Matching pursuit takes latents in order, each from what the earlier ones left:
c_k = w_k . (x - b_dec - sum_{j<k} c_j w_j), so with the chosen atoms as rows of D,
c = (I + tril(D D^T, -1))^-1 D (x - b_dec), a triangular solve; an atom chosen twice is the sum of
its two steps.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.config import UsageError
from saelab.sae.base import AbstractSAE
from saelab.sae.jumprelu import JumpReLU
from saelab.sae.k_sparse import KSparse
from saelab.sae.matching_pursuit import MatchingPursuit
from saelab.sae.unit_norm import AbstractUnitNormSAE
from saelab.types import SparseCodes

TOLERANCE = 1e-3
"""How far the affine form may be from the SAE's own codes, relative to the largest of them."""


CHUNK = 4096
"""Active latents whose values are computed together."""


@dataclass(frozen=True)
class TakenRows:
    """Rows of a matrix, one an active latent, taken out of it when they are asked for.

    A prompt has many times more active latents than an SAE of its width has rows to spare, so no
    copy of all of them is kept. Index it like a tensor; `[:]` is all of it.
    """

    matrix: Float[Tensor, "d_sae d"]
    number: Int[Tensor, " n"]
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Of all rows together."""
        return len(self.number), self.matrix.shape[1]

    def __getitem__(self, index: int | slice | list[int] | Tensor) -> Float[Tensor, "*k d"]:
        """The rows of these active latents."""
        return self.matrix[self.number[index]].to(self.dtype)


@dataclass(frozen=True)
class LinearCodes:
    """The active latents of some rows x; entry n is `values[n] = encoder[n] . x[row[n]] + c[n]`.

    Sorted by row, then by latent; each latent at most once a row.
    """

    row: Int[Tensor, " n"]
    latent: Int[Tensor, " n"]
    values: Float[Tensor, " n"]
    encoder: Float[Tensor, "n d_in"] | TakenRows
    constant: Float[Tensor, " n"]

    def __len__(self) -> int:
        """Active latents over all rows."""
        return len(self.row)


@torch.no_grad()
def linearize(
    sae: AbstractSAE, x: Float[Tensor, "batch d_in"], where: Bool[Tensor, " batch"] | None = None
) -> LinearCodes:
    """The SAE's active latents at `x`, in the number type of `x`; of the rows `where`, if given.

    Which latents are active is decided as `encode` decides it, in the SAE's own number type; their
    values follow from the affine form.

    Raises:
        UsageError: the variant's codes are not affine in x once the active latents are fixed.
    """
    if where is not None and not bool(where.all()):
        (rows,) = where.nonzero(as_tuple=True)
        if not len(rows):
            none = x.new_zeros(0)
            return LinearCodes(rows, rows, none, x[:0], none)
        found = linearize(sae, x[rows])
        return replace(found, row=rows[found.row])
    own = x.to(sae.W_dec.dtype)
    codes = sae.encode(own)
    if isinstance(sae, MatchingPursuit):
        found = _pursued(sae, x, own)
    else:
        row, latent = _support(codes)
        encoder, constant = _affine(sae, latent, x.dtype)
        values = constant.clone()
        for part in torch.arange(len(row), device=row.device).split(CHUNK):
            values[part] += (encoder[part] * x[row[part]]).sum(-1)
        found = LinearCodes(row, latent, values, encoder, constant)
    _check(sae, found, codes)
    return found


def _support(codes: SparseCodes) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    key = codes.rows()[codes.active] * codes.d_sae + codes.indices[codes.active]
    key = key.sort().values
    return key // codes.d_sae, key % codes.d_sae


def _affine(
    sae: AbstractSAE, latent: Int[Tensor, " n"], dtype: torch.dtype
) -> tuple[TakenRows, Float[Tensor, " n"]]:
    match sae:
        case AbstractUnitNormSAE():
            W_enc, b_enc, shifted = sae.W_enc, sae.b_enc, True
        case JumpReLU():
            W_enc, b_enc, shifted = sae.W_enc, sae.b_enc, sae.centres
        case KSparse():
            W_enc, b_enc, shifted = sae.W_enc, sae.b_enc, False
        case _:
            raise UsageError(
                f"The latents of a {type(sae).__name__} are not known to be affine once the active "
                "ones are fixed, so their attributions would not add up; use another variant."
            )
    encoder, constant = TakenRows(W_enc.T, latent, dtype), b_enc[latent].to(dtype)
    if shifted:
        for part in torch.arange(len(latent), device=latent.device).split(CHUNK):
            constant[part] -= encoder[part] @ sae.input_bias.to(dtype)
    return encoder, constant


def _pursued(
    sae: MatchingPursuit, x: Float[Tensor, "batch d_in"], own: Float[Tensor, "batch d_in"]
) -> LinearCodes:
    pursuit = sae.pursue(own)
    atoms, b_dec = sae.W_dec.to(x.dtype), sae.b_dec.to(x.dtype)
    rows, latents, encoders = [], [], []
    for row, (values, indices) in enumerate(zip(pursuit.values, pursuit.indices, strict=True)):
        D = atoms[indices[values != 0]]
        latent, member = indices[values != 0].unique(return_inverse=True)
        below = torch.eye(len(D), dtype=x.dtype, device=x.device) + (D @ D.T).tril(-1)
        steps = torch.linalg.solve_triangular(below, D, upper=False, unitriangular=True)
        encoders.append(steps.new_zeros(len(latent), x.shape[1]).index_add(0, member, steps))
        latents.append(latent)
        rows.append(torch.full_like(latent, row))
    row, latent, encoder = torch.cat(rows), torch.cat(latents), torch.cat(encoders)
    constant = -encoder @ b_dec
    return LinearCodes(row, latent, (encoder * x[row]).sum(-1) + constant, encoder, constant)


def _check(sae: AbstractSAE, found: LinearCodes, codes: SparseCodes) -> None:
    """The affine form must give the SAE's own codes: a variant may override what it inherits."""
    active = codes.active
    theirs = codes.rows()[active] * codes.d_sae + codes.indices[active]
    keys, place = torch.cat([theirs, found.row * codes.d_sae + found.latent]).unique(
        return_inverse=True
    )
    values = torch.zeros(len(keys), dtype=found.values.dtype, device=keys.device)
    own = values.index_add(0, place[: len(theirs)], codes.values[active].to(values.dtype))
    missed = own.index_add(0, place[len(theirs) :], -found.values).abs()
    worst, largest = (float(v.max()) if len(v) else 0.0 for v in (missed, own.abs()))
    if worst > TOLERANCE * max(1e-12, largest):
        raise UsageError(
            f"The affine form of this {type(sae).__name__} misses its codes by {worst:.3g}, so "
            "attributions would not add up; use another variant."
        )

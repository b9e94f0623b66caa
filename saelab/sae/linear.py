"""An SAE at given rows as an affine map: with the active latents fixed, each is affine in x."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.config import UsageError
from saelab.sae.affine import LinearCodes
from saelab.sae.base import AbstractSAE
from saelab.sae.decoder import dtype_of
from saelab.types import SparseCodes

TOLERANCE = 1e-3
"""Largest difference between the affine form and the SAE's codes, relative to the largest code."""


@torch.no_grad()
def linearize(
    sae: AbstractSAE, x: Float[Tensor, "batch d_in"], where: Bool[Tensor, " batch"] | None = None
) -> LinearCodes:
    """The SAE's active latents at `x`, in the dtype of `x`; only of the rows `where`, if given.

    `encode` decides in the SAE's own dtype which latents are active; their values come from the
    affine form.

    Raises:
        UsageError: the variant's codes are not affine in x, even when the active latents are fixed.
    """
    if where is not None and not bool(where.all()):
        (rows,) = where.nonzero(as_tuple=True)
        if not len(rows):
            none = x.new_zeros(0)
            return LinearCodes(rows, rows, none, x[:0], none)
        found = linearize(sae, x[rows])
        return replace(found, row=rows[found.row])
    own = x.to(dtype_of(sae))
    codes = sae.encode(own)
    found = sae.linear_codes(x, codes)
    _check(sae, found, codes)
    return found


def _check(sae: AbstractSAE, found: LinearCodes, codes: SparseCodes) -> None:
    """Check that the affine form gives the SAE's codes: a variant may override what it inherits."""
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

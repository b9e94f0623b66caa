"""How similar a dictionary's atoms are, which limits what a pursuit in it can find."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from saelab.config import UsageError

BABEL_CHUNK_BYTES = 2**26
"""Bytes of the Gram matrix that `babel` holds at once."""


@torch.no_grad()
def babel(atoms: Float[Tensor, "d_sae d_in"], q: int) -> float:
    """mu_1(q), dimensionless: how well q atoms together can imitate another atom.

    The largest sum, over the atoms, of the q largest |cosines| with other atoms. It is between 0
    (orthogonal atoms) and q. Rows are normalised first. q=0 gives 0.

    Raises:
        UsageError: there are fewer than q other atoms.
    """
    if not 0 <= q < len(atoms):
        raise UsageError(
            f"q={q} is outside 0..{len(atoms) - 1}, the number of other atoms; "
            "choose a smaller q or a wider dictionary."
        )
    unit = F.normalize(atoms.to(torch.promote_types(atoms.dtype, torch.float32)), dim=1)
    rows = max(1, BABEL_CHUNK_BYTES // (len(unit) * unit.element_size()))
    largest = []
    with torch.autocast(unit.device.type, enabled=False):
        for start in range(0, len(unit), rows):
            cosines = (unit[start : start + rows] @ unit.T).abs()
            cosines.diagonal(start).zero_()
            largest.append(cosines.topk(q, dim=1).values.sum(1).max())
    return float(torch.stack(largest).max())


def coherence(atoms: Float[Tensor, "d_sae d_in"]) -> float:
    """The largest |cosine| between two atoms, which is `babel(atoms, 1)`."""
    return babel(atoms, 1)

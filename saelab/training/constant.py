"""Refusing a site whose rows are all alike: there is no variance to explain."""

from jaxtyping import Float
from torch import Tensor

from saelab.activations.joint import AnySite
from saelab.activations.reforward import ROUNDING
from saelab.activations.store import ActivationStore
from saelab.config import UsageError

VARYING_ROWS = 4096
NOISE = 1e-5
"""Relative difference per channel between equal rows, in float32, from two forward passes."""


def check_varies(name: str, site: AnySite, store: ActivationStore, seed: int) -> None:
    """Refuse a site of a store if sampled rows are all the same.

    Raises:
        UsageError: no row and no channel differs by more than rounding.
    """
    rows = site.sample(min(VARYING_ROWS, site.n_rows), seed=seed)
    if alike(rows, ROUNDING[store.manifest.dtype]):
        raise UsageError(
            f"The activations of {name} in {store.path} are constant: {len(rows)} rows are all "
            "the same but for rounding, so there is no variance to explain; harvest another site "
            "or text."
        )


def alike(rows: Float[Tensor, "n d_in"], rounding: float) -> bool:
    """Whether all rows are one vector, up to a relative error of `rounding`."""
    mean, deviation = rows.double().mean(dim=0).abs(), rows.double().std(dim=0, correction=0)
    # Relative to the median, since one channel may be a thousand times the others.
    size = mean.clamp_min(float(mean.median()))
    return bool((deviation <= (NOISE + rounding) * size).all())

"""A run's latents as a whole: dead, dense and duplicate ones, and densities."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from saelab.analysis.feature_file import FeatureFile

DENSE = 0.1
"""A latent that fires on more than this share of tokens is dense."""
ALIKE = 0.95
"""Two latents whose decoder rows have a higher cosine are duplicates."""
BINS_PER_DECADE = 4


@dataclass(frozen=True)
class Densities:
    """How often latents fire.

    Attributes:
        density: share of tokens on which each latent fires.
        n_tokens: number of tokens read.
        source: the file with these figures.
    """

    density: Float[ndarray, " latent"]
    n_tokens: int
    source: str

    @property
    def dead(self) -> Int[ndarray, " dead"]:
        """The latents that never fired."""
        return np.flatnonzero(self.density == 0)

    @property
    def dense(self) -> Int[ndarray, " dense"]:
        """The latents above `DENSE`, the densest first."""
        found = np.flatnonzero(self.density > DENSE)
        return found[np.argsort(-self.density[found], kind="stable")]

    def histogram(self) -> tuple[list[float], list[int]]:
        """Bins of quarter decades of the density, and the number of living latents in each.

        A latent on an edge belongs to the bin above; one that always fires, to the last bin.
        """
        decades = max(1, math.ceil(math.log10(max(2, self.n_tokens))))
        edges = np.linspace(-decades, 0, decades * BINS_PER_DECADE + 1)
        alive = self.density[self.density > 0]
        place = np.searchsorted(edges, np.log10(alive), side="right") - 1
        counts = np.bincount(np.clip(place, 0, len(edges) - 2), minlength=len(edges) - 1)
        return edges.tolist(), counts.tolist()


@dataclass(frozen=True)
class Twins:
    """Latents with a duplicate.

    Attributes:
        latent, other: a latent and its nearest by decoder cosine, the closest pairs first; each
            pair once.
        cosine: cosine of the two rows; negative for opposite rows of signed codes.
    """

    latent: Int[ndarray, " pair"]
    other: Int[ndarray, " pair"]
    cosine: Float[ndarray, " pair"]


def feature_densities(file: FeatureFile) -> Densities:
    """The densities counted when the run's features were collected."""
    n_tokens = int(file.facts["n_tokens"])
    return Densities(np.asarray(file["latent/n_fired"]) / n_tokens, n_tokens, "features.h5")


def evaluated_densities(values: dict[str, Any]) -> Densities | None:
    """The densities in `evaluation/density.json`; None if it has none."""
    frequency, n_tokens = values.get("frequency"), values.get("n_tokens")
    if not isinstance(frequency, list) or not isinstance(n_tokens, int):
        return None
    if not all(isinstance(share, int | float) and 0 <= share <= 1 for share in frequency):
        return None
    return Densities(np.array(frequency, dtype=np.float64), n_tokens, "evaluation/density.json")


def twins(file: FeatureFile, *, signed: bool) -> Twins:
    """The pairs above `ALIKE` among each latent's neighbours in the features file."""
    nobody = np.zeros(0, np.int64)
    if "neighbours/latents" not in file:
        return Twins(nobody, nobody, np.zeros(0))
    others, cosines = file["neighbours/latents"], file["neighbours/cosine"]
    alike = (np.abs(cosines) if signed else cosines) > ALIKE
    latent, slot = np.nonzero(alike & (others >= 0))
    other, cosine = others[latent, slot].astype(np.int64), cosines[latent, slot].astype(np.float64)
    # A neighbour's own list may be full of closer ones, so a pair may be in one list only.
    ends = np.sort(np.stack([latent, other]), axis=0)
    _, first = np.unique(ends[0] * len(others) + ends[1], return_index=True)
    ordered = first[np.argsort(-np.abs(cosine[first]), kind="stable")]
    return Twins(ends[0][ordered], ends[1][ordered], cosine[ordered])

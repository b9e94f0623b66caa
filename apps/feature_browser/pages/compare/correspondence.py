"""The correspondence of two runs' latents, by the cosine of their decoder rows."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from feature_browser.data.weights import DecoderRows
from feature_browser.pages.compare.nearest import Nearest, nearest

ALIKE = 0.7
"""The least cosine at which two latents count as the same direction."""
SURE_PLACES = 5
"""The decimal places of a cosine in float32 that do not depend on the order of its sums."""
KINDS = {
    "matched": "each is the other's nearest, and nobody else's",
    "split": "several latents of the other run have this one as their nearest",
    "merged": "shares its nearest with others of its own run",
    "one-way": "has a near latent, which is nearer to another",
    "unique": f"no latent of the other run has a cosine of {ALIKE} or more",
}


@dataclass(frozen=True)
class Side:
    """One run's latents, compared with the other run's.

    Attributes:
        nearest: each latent's nearest in the other run.
        kind: index in KINDS of each latent.
        followers: number of the other run's latents whose nearest it is, with cosine ALIKE or more.
    """

    nearest: Nearest
    kind: Int[ndarray, " latent"]
    followers: Int[ndarray, " latent"]

    def of_kind(self, kind: str) -> Int[ndarray, " found"]:
        """The latents of a kind, or all, the highest cosines first; equal ones in order."""
        wanted = self.kind == list(KINDS).index(kind) if kind else np.ones(len(self.kind), bool)
        found = np.flatnonzero(wanted)
        # Rounded, or the last bits would decide, and each machine sums its own way.
        cosine = self.nearest.cosine[found].round(SURE_PLACES)
        return found[np.argsort(-cosine, kind="stable")]

    def counts(self) -> dict[str, int]:
        """The number of latents of each kind; they sum to all."""
        found = np.bincount(self.kind, minlength=len(KINDS)).tolist()
        return dict(zip(KINDS, found, strict=True))


@dataclass(frozen=True)
class Correspondence:
    """Both sides of a comparison."""

    this: Side
    other: Side

    def turned(self) -> "Correspondence":
        """The same with the sides exchanged."""
        return Correspondence(self.other, self.this)

    def histogram(self) -> tuple[list[float], list[int]]:
        """Bin edges, and the number of this run's latents by cosine to their nearest."""
        cosines: Float[ndarray, " latent"] = np.clip(self.this.nearest.cosine, 0, 1)
        counts, edges = np.histogram(cosines, bins=25, range=(0.0, 1.0))
        return edges.tolist(), counts.tolist()


def correspond(this: DecoderRows, other: DecoderRows) -> Correspondence:
    """Match two decoders of the same inputs."""
    return of_nearest(*nearest(this, other))


def of_nearest(across: Nearest, back: Nearest) -> Correspondence:
    """The comparison of two decoders from the nearest rows in both directions."""
    return Correspondence(_side(across, back), _side(back, across))


def _side(forth: Nearest, back: Nearest) -> Side:
    """The side of the latents whose nearest ones are `forth`.

    Kinds are assigned in reverse order of KINDS, so that earlier kinds win: a latent that splits is
    `split` even if it is also a match.
    """
    near, far_near = forth.cosine >= ALIKE, back.cosine >= ALIKE
    followers = np.bincount(back.row[far_near], minlength=len(forth.row))
    of_nearest = np.bincount(forth.row[near], minlength=len(back.row))[forth.row]
    mutual = near & (back.row[forth.row] == np.arange(len(forth.row)))
    names = list(KINDS)
    kind = np.full(len(forth.row), names.index("unique"))
    kind[near] = names.index("one-way")
    kind[near & (of_nearest >= 2)] = names.index("merged")
    kind[mutual & (of_nearest == 1)] = names.index("matched")
    kind[followers >= 2] = names.index("split")
    return Side(forth, kind, followers)

"""How the latents of two runs correspond, by the cosine of their decoder rows."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from feature_browser.data.weights import DecoderRows
from feature_browser.pages.compare.nearest import Nearest, nearest

ALIKE = 0.7
"""The least cosine at which two latents count as the same direction."""
KINDS = {
    "matched": "each is the other's nearest, and nobody else's",
    "split": "several latents of the other run have this one as their nearest",
    "merged": "shares its nearest with others of its own run",
    "one-way": "has a near latent, which is nearer to another",
    "unique": f"no latent of the other run has a cosine of {ALIKE} or more",
}


@dataclass(frozen=True)
class Side:
    """One run's latents, as the other run sees them.

    Attributes:
        nearest: each latent's nearest in the other run.
        kind: of each, its index in KINDS.
        followers: how many of the other run's latents have it as their nearest, at ALIKE or more.
    """

    nearest: Nearest
    kind: Int[ndarray, " latent"]
    followers: Int[ndarray, " latent"]

    def of_kind(self, kind: str) -> Int[ndarray, " found"]:
        """The latents of a kind, or all, those of the highest cosine first."""
        wanted = self.kind == list(KINDS).index(kind) if kind else np.ones(len(self.kind), bool)
        found = np.flatnonzero(wanted)
        return found[np.argsort(-self.nearest.cosine[found], kind="stable")]

    def counts(self) -> dict[str, int]:
        """How many latents are of each kind; they sum to all."""
        found = np.bincount(self.kind, minlength=len(KINDS)).tolist()
        return dict(zip(KINDS, found, strict=True))


@dataclass(frozen=True)
class Correspondence:
    """Both sides of a comparison."""

    this: Side
    other: Side

    def turned(self) -> "Correspondence":
        """The same from the other side."""
        return Correspondence(self.other, self.this)

    def histogram(self) -> tuple[list[float], list[int]]:
        """Edges, and how many of this run's latents have their nearest at each cosine."""
        cosines: Float[ndarray, " latent"] = np.clip(self.this.nearest.cosine, 0, 1)
        counts, edges = np.histogram(cosines, bins=25, range=(0.0, 1.0))
        return edges.tolist(), counts.tolist()


def correspond(this: DecoderRows, other: DecoderRows) -> Correspondence:
    """Match two decoders of the same inputs."""
    return of_nearest(*nearest(this, other))


def of_nearest(across: Nearest, back: Nearest) -> Correspondence:
    """The comparison of two decoders whose rows' nearest are known, both ways."""
    return Correspondence(_side(across, back), _side(back, across))


def _side(forth: Nearest, back: Nearest) -> Side:
    """The side of the latents whose nearest ones are `forth`.

    Kinds are given in the order of KINDS reversed, so that what is said first wins: a latent that
    splits is split even if it is also somebody's match.
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

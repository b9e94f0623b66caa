"""Sums of products of the rows of two sites: all that fitting and scoring a map needs of them.

They add up over batches and over folds, so a store of any length is read once, in memory that
depends on the widths alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Pair = tuple[str, str]
"""The names of the earlier and of the later site."""


@dataclass(frozen=True)
class PairMoments:
    """Sums over n rows `x` of one site and the rows `y` of another at the same tokens, in float64.

    Attributes:
        x, y: sums of the rows.
        xx, xy, yy: sums of `x x^T`, `x y^T` and `y y^T`.
    """

    n: int
    x: Float[Tensor, " d_in"]
    y: Float[Tensor, " d_out"]
    xx: Float[Tensor, "d_in d_in"]
    xy: Float[Tensor, "d_in d_out"]
    yy: Float[Tensor, "d_out d_out"]

    @classmethod
    def of(cls, x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"]) -> "PairMoments":
        """The sums over these rows."""
        x, y = x.double(), y.double()
        return cls(len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y, y.T @ y)

    def __add__(self, other: "PairMoments") -> "PairMoments":
        """The sums over the rows of both."""
        sums = (getattr(self, name) + getattr(other, name) for name in ("x", "y", "xx", "xy", "yy"))
        return PairMoments(self.n + other.n, *sums)

    @property
    def mean_x(self) -> Float[Tensor, " d_in"]:
        """Mean of the earlier site's rows."""
        return self.x / self.n

    @property
    def mean_y(self) -> Float[Tensor, " d_out"]:
        """Mean of the later site's rows."""
        return self.y / self.n

    def about(
        self, x: Float[Tensor, " d_in"], y: Float[Tensor, " d_out"]
    ) -> tuple[
        Float[Tensor, "d_in d_in"], Float[Tensor, "d_in d_out"], Float[Tensor, "d_out d_out"]
    ]:
        """`xx`, `xy` and `yy` of the same rows less `x` and `y`."""
        left, right = self.x - self.n * x, self.y - self.n * y
        return (
            self.xx - torch.outer(self.x, x) - torch.outer(x, left),
            self.xy - torch.outer(self.x, y) - torch.outer(x, right),
            self.yy - torch.outer(self.y, y) - torch.outer(y, right),
        )

    def centred(
        self,
    ) -> tuple[
        Float[Tensor, "d_in d_in"], Float[Tensor, "d_in d_out"], Float[Tensor, "d_out d_out"]
    ]:
        """`xx`, `xy` and `yy` about the means."""
        return self.about(self.mean_x, self.mean_y)


class FoldSums:
    """Collects the moments of several pairs of sites, fold by fold; each site is squared once.

    Rows are taken about a fixed origin of their site, near its mean, so that sums of squares do
    not cancel.
    """

    def __init__(
        self, origins: Mapping[str, Float[Tensor, " _"]], pairs: Sequence[Pair], n_folds: int
    ) -> None:
        self.origins = {name: origin.double() for name, origin in origins.items()}
        self.n = [0] * n_folds
        self._sum = {
            site: [torch.zeros_like(origin) for _ in self.n]
            for site, origin in self.origins.items()
        }
        self._product = {
            (a, b): [torch.outer(self.origins[a], self.origins[b]).zero_() for _ in self.n]
            for a, b in [*((site, site) for site in self.origins), *pairs]
        }

    def add(self, rows: Mapping[str, Float[Tensor, "n _"]], fold: Int[Tensor, " n"]) -> None:
        """Count rows of every site at the same tokens, each in its fold."""
        for f in range(len(self.n)):
            mine = torch.nonzero(fold == f)[:, 0]
            if not len(mine):
                continue
            here = {s: rows[s][mine].double() - o for s, o in self.origins.items()}
            self.n[f] += len(mine)
            for site, x in here.items():
                self._sum[site][f] += x.sum(0)
            for (a, b), products in self._product.items():
                products[f].addmm_(here[a].T, here[b])

    def moments(self, pair: Pair) -> list[PairMoments]:
        """Each fold's moments of a pair, about the origins."""
        a, b = pair
        return [
            PairMoments(
                n,
                self._sum[a][f],
                self._sum[b][f],
                self._product[a, a][f],
                self._product[a, b][f],
                self._product[b, b][f],
            )
            for f, n in enumerate(self.n)
        ]

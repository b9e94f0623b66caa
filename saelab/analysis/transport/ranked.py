"""Affine maps of every rank at once, from moments: reduced-rank ridge regression.

The map of rank r that minimises `||Y - X B||² + a ||B||²` is the ridge map B followed by the
projection on the first r eigenvectors P of `B^T (X^T X + a) B` (Mukherjee and Zhu, 2011): so the
maps of all ranks share U = B P and P.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.analysis.transport.moments import PairMoments
from saelab.analysis.transport.operators import FLOOR, Canonical, Transport


@dataclass(frozen=True)
class RankedMaps:
    """`y_hat = mean_y + (x - mean_x) @ U[:, :r] @ P[:, :r].T` for every rank r up to k.

    Attributes:
        P: orthonormal directions of the later site, the most important first.
    """

    U: Float[Tensor, "d_in k"]
    P: Float[Tensor, "d_out k"]
    mean_x: Float[Tensor, " d_in"]
    mean_y: Float[Tensor, " d_out"]

    @property
    def most(self) -> int:
        """The largest rank."""
        return self.U.shape[1]

    def transport(self, rank: int | None = None) -> Transport:
        """The map of a rank; by default of the largest."""
        T = self.P[:, :rank] @ self.U[:, :rank].T
        return Transport(T, self.mean_y - T @ self.mean_x)

    def moved(self, x: Float[Tensor, " d_in"], y: Float[Tensor, " d_out"]) -> "RankedMaps":
        """The same maps for rows that are not about the origins `x` and `y`."""
        return RankedMaps(self.U, self.P, self.mean_x + x, self.mean_y + y)

    def missed(self, rows: PairMoments) -> Float[Tensor, " ranks"]:
        """The squared error on these rows of the maps of rank 0, 1, ..., k; rank 0 is the mean."""
        return _missed(self.U, self.P, rows.about(self.mean_x, self.mean_y))

    def missed_whitened(
        self, rows: PairMoments, W: Float[Tensor, "d_out d_out"]
    ) -> Float[Tensor, " ranks"]:
        """The same in the metric `||(y - y_hat) W||²`."""
        xx, xy, yy = rows.about(self.mean_x, self.mean_y)
        metric = W @ W.T
        hit = (self.U * (xy @ (metric @ self.P))).sum(0).cumsum(0)
        size = (self.P.T @ metric @ self.P) * (self.U.T @ xx @ self.U)
        cost = size.cumsum(0).cumsum(1).diagonal()
        start = (metric * yy).sum()
        return start - torch.cat([hit.new_zeros(1), 2 * hit - cost])

    def residual(self, rows: PairMoments) -> Float[Tensor, "d_out d_out"]:
        """The sum of `e e^T` over these rows, e being the error of the map of the largest rank."""
        xx, xy, yy = rows.about(self.mean_x, self.mean_y)
        B = self.U @ self.P.T
        cross = B.T @ xy
        return yy - cross - cross.T + B.T @ xx @ B


def _missed(
    U: Float[Tensor, "d_in k"], P: Float[Tensor, "d_out k"], about: tuple[Tensor, Tensor, Tensor]
) -> Float[Tensor, " ranks"]:
    """||Y||² - sum over the directions of what each one gains, as P is orthonormal."""
    xx, xy, yy = about
    gain = 2 * (U * (xy @ P)).sum(0) - (U * (xx @ U)).sum(0)
    return yy.trace() - torch.cat([gain.new_zeros(1), gain.cumsum(0)])


@dataclass(frozen=True)
class Spectrum:
    """The earlier site's rows by their principal axes, from which every ridge's map is quick."""

    values: Float[Tensor, " d_in"]
    axes: Float[Tensor, "d_in d_in"]
    xy: Float[Tensor, "d_in d_out"]
    rows: PairMoments

    @classmethod
    def of(cls, rows: PairMoments) -> "Spectrum":
        """Of the rows to fit."""
        xx, xy, _ = rows.centred()
        values, axes = torch.linalg.eigh(xx)
        return cls(values, axes, axes.T @ xy, rows)

    def ridge(self, ridge: float) -> Float[Tensor, "d_in d_out"]:
        """The map of full rank; `ridge` is a share of the mean eigenvalue of `X^T X`.

        Axes with less than FLOOR of the largest variance, which are constant, are not used.
        """
        kept = self.values > FLOOR * self.values[-1].clamp_min(1e-300)
        shifted = self.values.clamp_min(0) + ridge * self.values.mean()
        scale = torch.where(kept, shifted.clamp_min(1e-300).reciprocal(), 0.0)
        return self.axes @ (scale[:, None] * self.xy)

    def reduced_rank(self, ridge: float) -> RankedMaps:
        """The best maps of every rank: see this module."""
        B = self.ridge(ridge)
        most = min(B.shape)
        # B^T (X^T X + a) B = B^T X^T Y, since B solves the normal equations.
        gained = B.T @ (self.axes @ self.xy)
        _, P = torch.linalg.eigh((gained + gained.T) / 2)
        P = P.flip(1)[:, :most]
        return RankedMaps(B @ P, P, self.rows.mean_x, self.rows.mean_y)


def cut_by_svd(maps: RankedMaps) -> RankedMaps:
    """The full map cut to each rank by its own singular values, as the paper does."""
    V, S, Wt = torch.linalg.svd(maps.U @ maps.P.T, full_matrices=False)
    return RankedMaps(V * S, Wt.T, maps.mean_x, maps.mean_y)


def canonical_maps(found: Canonical, rows: PairMoments) -> RankedMaps:
    """The best maps of each rank to `y @ W_y`, in which every direction counts alike.

    They attain the bound on the rows that `found` is of: see `Canonical`.
    """
    U = found.W_x @ found.Vt.T * found.rho
    return RankedMaps(U, found.U, rows.mean_x, found.W_y @ rows.mean_y)


def whitened(rows: PairMoments, W: Float[Tensor, "d_out d_out"]) -> PairMoments:
    """The moments of the same rows with `y @ W` for y; W is symmetric."""
    return PairMoments(rows.n, rows.x, W @ rows.y, rows.xx, rows.xy @ W, W @ rows.yy @ W)

"""Activation transport operators: what of a layer's residual stream a later layer just carries on.

An affine map from the stream at one layer to that of a later one, at the same token, says how much
of the later stream is transported rather than made anew. Its quality is measured in the metric in
which every direction of the later stream has unit variance, where the best map of rank r is known:
the first r canonical correlations of the two layers (so errors there bound those of any map). All
statistics are centred, in float64 and of one sample, on which alone the bound holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.analysis.transport.moments import PairMoments
from saelab.config import UsageError

FLOOR = 1e-12
"""Directions with less than this share of the largest variance count as constant."""


@dataclass(frozen=True)
class Transport:
    """`y_hat = x @ T.T + b`.

    Attributes:
        T: the map.
        b: what is added.
    """

    T: Float[Tensor, "d_out d_in"]
    b: Float[Tensor, " d_out"]

    def __call__(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        """The later layer's rows, as far as they are carried."""
        return x.to(self.T.dtype) @ self.T.T + self.b

    def truncated(self, rank: int) -> "Transport":
        """The nearest map of this rank in the plain metric, with the same offset."""
        U, S, Vt = torch.linalg.svd(self.T, full_matrices=False)
        return replace(self, T=(U[:, :rank] * S[:rank]) @ Vt[:rank])


@dataclass(frozen=True)
class RankEfficiency:
    """How good a map is when cut to a rank, and how good any map of that rank can be.

    Attributes:
        rank: of the map.
        r2: explained share of the later stream, every direction of it weighted alike.
        ceiling: the largest possible.
    """

    rank: int
    r2: float
    ceiling: float

    @property
    def efficiency(self) -> float:
        """r2 / ceiling, at most 1 on the sample that both were measured on."""
        return self.r2 / self.ceiling


@dataclass(frozen=True)
class Canonical:
    """Two samples whitened against each other: `(y - mean) @ W_y`, `W_y C W_x = U diag(rho) V`.

    Attributes:
        rho: canonical correlations, largest first.
        n_directions: of y, that vary.
    """

    W_x: Float[Tensor, "d_in d_in"]
    W_y: Float[Tensor, "d_out d_out"]
    U: Float[Tensor, "d_out k"]
    rho: Float[Tensor, " k"]
    Vt: Float[Tensor, "k d_in"]
    n_directions: int

    @classmethod
    def of(cls, x: Float[Tensor, "n d_in"], y: Float[Tensor, "rows d_out"]) -> "Canonical":
        """Of rows of two layers at the same tokens.

        Raises:
            UsageError: the rows do not pair up, are too few, or y does not vary.
        """
        _check_pairs(x, y)
        return cls.of_moments(PairMoments.of(x - x.double().mean(0), y - y.double().mean(0)))

    @classmethod
    def of_moments(cls, rows: PairMoments) -> "Canonical":
        """Of rows of which only these sums are known.

        Raises:
            UsageError: y does not vary.
        """
        xx, xy, yy = (product / rows.n for product in rows.centred())
        W_x, W_y = _inverse_root(xx), _inverse_root(yy)
        U, rho, Vt = torch.linalg.svd(W_y @ xy.T @ W_x, full_matrices=False)
        n_directions = int(torch.linalg.matrix_rank(W_y, hermitian=True))
        if n_directions == 0:
            raise UsageError("The later layer's rows are all alike, so nothing is transported.")
        return cls(W_x, W_y, U, rho.clamp(0, 1), Vt, n_directions)

    def ceiling(self, rank: int) -> float:
        """The share of y that the best map of this rank explains, each direction weighted alike."""
        return float(self.rho[:rank].square().sum()) / self.n_directions

    @property
    def size(self) -> float:
        """The participation ratio of the correlations: about how many directions are carried."""
        return float(self.rho.sum() ** 2 / self.rho.square().sum().clamp_min(1e-300))


def fit_transport(
    x: Float[Tensor, "n d_in"], y: Float[Tensor, "rows d_out"], ridge: float | int = 0.0
) -> Transport:
    """Least squares from x to y with an offset; `ridge` is added to the sums of squares.

    Raises:
        UsageError: the rows do not pair up, or are too few.
    """
    dx, dy = _centred(x, y)
    gram = dx.T @ dx + ridge * torch.eye(dx.shape[1], dtype=dx.dtype, device=dx.device)
    T = (torch.linalg.pinv(gram, hermitian=True) @ dx.T @ dy).T
    return _with_offset(T, x, y)


def best_transport(x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"], rank: int) -> Transport:
    """The map of this rank that explains most of y, every direction of y weighted alike."""
    found = Canonical.of(x, y)
    core = (found.U[:, :rank] * found.rho[:rank]) @ found.Vt[:rank]
    return _with_offset(torch.linalg.pinv(found.W_y, hermitian=True) @ core @ found.W_x, x, y)


def transport_efficiency(
    x: Float[Tensor, "n d_in"],
    y: Float[Tensor, "n d_out"],
    transport: Transport,
    ranks: Sequence[int],
) -> tuple[RankEfficiency, ...]:
    """What the map, cut to each rank, explains of y against what a map of that rank can.

    The offset is fitted again at each rank, as it costs no rank.
    """
    found = Canonical.of(x, y)
    whole = len(y) * found.n_directions
    out = []
    for rank in ranks:
        cut = _with_offset(transport.truncated(rank).T, x, y)
        missed = float(((y.double() - cut(x)) @ found.W_y).square().sum())
        out.append(RankEfficiency(rank, 1 - missed / whole, found.ceiling(rank)))
    return tuple(out)


def latent_transport(
    transport: Transport,
    x: Float[Tensor, "n d_in"],
    y: Float[Tensor, "n d_out"],
    atoms: Float[Tensor, "latent d_out"],
) -> Float[Tensor, " latent"]:
    """R² of the map along decoder rows of the later layer's SAE: near 1 carried, low made anew.

    The residual stream carries much by itself: compare with `Transport(eye, zeros)`.
    """
    directions = torch.nn.functional.normalize(atoms.double(), dim=1).T
    wanted, found = y.double() @ directions, transport(x) @ directions
    spread = (wanted - wanted.mean(0)).square().sum(0)
    return 1 - (wanted - found).square().sum(0) / spread.clamp_min(1e-300)


def _with_offset(
    T: Float[Tensor, "d_out d_in"], x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"]
) -> Transport:
    return Transport(T, y.double().mean(0) - T @ x.double().mean(0))


def _centred(
    x: Float[Tensor, "n d_in"], y: Float[Tensor, "rows d_out"]
) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]:
    _check_pairs(x, y)
    x, y = x.double(), y.double()
    return x - x.mean(0), y - y.mean(0)


def _check_pairs(x: Float[Tensor, "n d_in"], y: Float[Tensor, "rows d_out"]) -> None:
    if len(x) != len(y) or len(x) < 2:
        raise UsageError(
            f"Transport pairs rows of two layers, at least 2; got {len(x)} and {len(y)}."
        )


def _inverse_root(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > FLOOR * values[-1].clamp_min(1e-300)
    roots = torch.where(kept, values.clamp_min(1e-300).rsqrt(), 0.0)
    return (vectors * roots) @ vectors.T

"""Maps between two sites, fitted and measured on different documents.

Of F folds of documents, each fold's rows are predicted by a map fitted on the others. The ridge is
the one with the least error of full rank on the folds left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.analysis.transport.moments import PairMoments
from saelab.analysis.transport.operators import Canonical
from saelab.analysis.transport.ranked import (
    RankedMaps,
    Spectrum,
    canonical_maps,
    cut_by_svd,
    whitened,
)

RIDGES = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)
"""Ridges that are tried, as shares of the mean eigenvalue of `X^T X`."""


@dataclass(frozen=True)
class Curves:
    """What maps of rank 0, 1, ..., k explain of the later site.

    Attributes:
        r2: share of the later site's variance, on documents that the fit did not see.
        whitened: the same with every direction of the later site weighted alike.
        whitened_ceiling: the same for the maps that are best in that metric.
        fitted: `whitened` on the rows of the fit, where `ceiling` is a bound.
        fitted_svd: the same for the full map cut by its singular values, as in the paper.
        ceiling: the most that any map of this rank explains of these rows, every direction
            weighted alike: the sum of the first r squared canonical correlations, divided by the
            number of directions.
    """

    r2: Float[Tensor, " ranks"]
    whitened: Float[Tensor, " ranks"]
    whitened_ceiling: Float[Tensor, " ranks"]
    fitted: Float[Tensor, " ranks"]
    fitted_svd: Float[Tensor, " ranks"]
    ceiling: Float[Tensor, " ranks"]


@dataclass(frozen=True)
class Fit:
    """A pair of sites, fitted.

    Attributes:
        ridge: as a share of the mean eigenvalue of `X^T X`.
        maps: for each fold, the maps fitted on the other folds.
        whole: the maps fitted on all rows.
        canonical: canonical correlations on all rows.
        held_out_rho: the correlations, on each left-out fold, of the directions that the other
            folds found; means over folds, not below 0.
        residual: sum of `e e^T` over all rows, each by the map of its fold, at the largest rank.
        spread: sum of `(y - mean)(y - mean)^T` over all rows, about the mean of the other folds.
    """

    ridge: float
    maps: tuple[RankedMaps, ...]
    whole: RankedMaps
    canonical: Canonical
    held_out_rho: Float[Tensor, " k"]
    curves: Curves
    residual: Float[Tensor, "d_out d_out"]
    spread: Float[Tensor, "d_out d_out"]


def cross_validated(
    folds: Sequence[PairMoments],
    ridges: Sequence[float] = RIDGES,
    done: Callable[[], None] = lambda: None,
) -> Fit:
    """The maps of every rank between two sites, and what they explain.

    `done` is called once a fold, and once at the end.

    Raises:
        UsageError: the later site does not vary.
    """
    others = [reduce(add, [m for g, m in enumerate(folds) if g != f]) for f in range(len(folds))]
    spectra = [Spectrum.of(rows) for rows in others]
    ridge = _best_ridge(spectra, folds, ridges)
    maps = tuple(spectrum.reduced_rank(ridge) for spectrum in spectra)
    held_out = []
    for fold, rows, fitted in zip(folds, others, maps, strict=True):
        held_out.append(_held_out(fold, rows, fitted))
        done()
    whole = reduce(add, folds)
    canonical = Canonical.of_moments(whole)
    spectrum = Spectrum.of(whole)
    best = spectrum.reduced_rank(ridge)
    r2, white, ceiling = (_share([getattr(each, n) for each in held_out]) for n in SCORES)
    fitted, cut = (
        _share([made.missed_whitened(whole, canonical.W_y)]) for made in (best, cut_by_svd(best))
    )
    bound = torch.cat([r2.new_zeros(1), canonical.rho.square().cumsum(0) / canonical.n_directions])
    done()
    return Fit(
        ridge,
        maps,
        best,
        canonical,
        torch.stack([each.rho for each in held_out]).mean(0).clamp_min(0),
        Curves(r2, white, ceiling, fitted, cut, bound),
        torch.stack([m.residual(fold) for m, fold in zip(maps, folds, strict=True)]).sum(0),
        torch.stack([f.about(m.mean_x, m.mean_y)[2] for f, m in zip(folds, maps, strict=True)]).sum(
            0
        ),
    )


SCORES = ("plain", "white", "ceiling")


@dataclass(frozen=True)
class _HeldOut:
    """Squared errors on one fold of maps of every rank fitted on the others, in two metrics."""

    plain: Float[Tensor, " ranks"]
    white: Float[Tensor, " ranks"]
    ceiling: Float[Tensor, " ranks"]
    rho: Float[Tensor, " k"]


def _held_out(fold: PairMoments, rows: PairMoments, maps: RankedMaps) -> _HeldOut:
    found = Canonical.of_moments(rows)
    turned = whitened(fold, found.W_y)
    best = canonical_maps(found, rows)
    return _HeldOut(
        maps.missed(fold),
        maps.missed_whitened(fold, found.W_y),
        best.missed(turned),
        _correlations(found, turned),
    )


def _correlations(found: Canonical, turned: PairMoments) -> Float[Tensor, " k"]:
    """The correlation, on other rows, of each pair of canonical directions."""
    xx, xy, yy = turned.centred()
    V, U = found.W_x @ found.Vt.T, found.U
    sizes = (V * (xx @ V)).sum(0) * (U * (yy @ U)).sum(0)
    return (V * (xy @ U)).sum(0) / sizes.clamp_min(1e-300).sqrt()


def _share(missed: Sequence[Float[Tensor, " ranks"]]) -> Float[Tensor, " ranks"]:
    """1 - error / error of the mean, over all folds together."""
    total = torch.stack(list(missed)).sum(0)
    return 1 - total / total[0].clamp_min(1e-300)


def _best_ridge(
    spectra: Sequence[Spectrum], folds: Sequence[PairMoments], ridges: Sequence[float]
) -> float:
    if len(ridges) == 1:
        return ridges[0]
    errors = []
    for ridge in ridges:
        error = 0.0
        for spectrum, fold in zip(spectra, folds, strict=True):
            B = spectrum.ridge(ridge)
            xx, xy, _ = fold.about(spectrum.rows.mean_x, spectrum.rows.mean_y)
            error += float((B * (xx @ B - 2 * xy)).sum())
        errors.append(error)
    return ridges[min(range(len(ridges)), key=errors.__getitem__)]

"""Maps of every rank from moments alone: against least squares, alternation and plain sums."""

import pytest
import torch

from saelab.analysis.transport.fit import cross_validated
from saelab.analysis.transport.moments import FoldSums, PairMoments
from saelab.analysis.transport.operators import Canonical, fit_transport
from saelab.analysis.transport.ranked import (
    Spectrum,
    canonical_maps,
    cut_by_svd,
    whitened,
)
from saelab.evaluation.jackknife import jackknife, student

N, D_IN, D_OUT = 300, 6, 5
RANKS = range(D_OUT + 1)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.fixture
def rows():
    x = normal(0, N, D_IN) * torch.linspace(0.2, 3, D_IN) + 1.5
    return x, x @ normal(1, D_IN, D_OUT) + 1.5 * normal(2, N, D_OUT) - 2


def penalised(x, y, B, ridge):
    dx, dy = x - x.mean(0), y - y.mean(0)
    return float((dy - dx @ B).square().sum() + ridge * B.square().sum())


def alternating(x, y, ridge, rank, steps=400):
    """The least penalised error of `A C`, each fitted in turn to the other: a second method."""
    dx, dy = x - x.mean(0), y - y.mean(0)
    gram = dx.T @ dx + ridge * torch.eye(D_IN).double()
    A = normal(3, D_IN, rank)
    for _ in range(steps):
        C = torch.linalg.solve(A.T @ gram @ A, A.T @ dx.T @ dy)
        A = torch.linalg.solve(gram, dx.T @ dy @ C.T @ torch.linalg.pinv(C @ C.T))
    return A @ torch.linalg.solve(A.T @ gram @ A, A.T @ dx.T @ dy)


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_the_map_of_each_rank_is_the_best_there_is(rows, share):
    x, y = rows
    spectrum = Spectrum.of(PairMoments.of(x, y))
    maps, ridge = spectrum.reduced_rank(share), share * float(spectrum.values.mean())
    for rank in RANKS[1:]:
        T = maps.transport(rank).T
        assert int(torch.linalg.matrix_rank(T)) == rank
        best = penalised(x, y, alternating(x, y, ridge, rank), ridge)
        assert penalised(x, y, T.T, ridge) == pytest.approx(best, rel=1e-9)
    whole = fit_transport(x, y, ridge)
    torch.testing.assert_close(maps.transport().T, whole.T)
    torch.testing.assert_close(maps.transport().b, whole.b)


def test_errors_from_moments_are_those_of_rows_that_the_fit_never_saw(rows):
    x, y = rows
    fit, other = PairMoments.of(x[:200], y[:200]), PairMoments.of(x[200:], y[200:])
    W = Canonical.of_moments(fit).W_y
    for maps in (
        Spectrum.of(fit).reduced_rank(0.01),
        cut_by_svd(Spectrum.of(fit).reduced_rank(0.0)),
    ):
        errors = [y[200:] - maps.transport(rank)(x[200:]) for rank in RANKS]
        plain = torch.stack([e.square().sum() for e in errors])
        torch.testing.assert_close(maps.missed(other), plain)
        white = torch.stack([(e @ W).square().sum() for e in errors])
        torch.testing.assert_close(maps.missed_whitened(other, W), white)
        torch.testing.assert_close(maps.residual(other), errors[-1].T @ errors[-1])


def test_canonical_maps_attain_the_bound_at_every_rank_and_nothing_exceeds_it(rows):
    moments = PairMoments.of(*rows)
    found = Canonical.of_moments(moments)
    best = canonical_maps(found, moments).missed(whitened(moments, found.W_y))
    curves = cross_validated([PairMoments.of(x, y) for x, y in folds(*rows)]).curves
    torch.testing.assert_close(1 - best / best[0], curves.ceiling)
    for curve in (curves.fitted, curves.fitted_svd):
        assert bool((curve <= curves.ceiling + 1e-12).all())
    assert bool((curves.whitened_ceiling <= curves.ceiling).all())


def folds(x, y, n=5):
    return [(x[i::n], y[i::n]) for i in range(n)]


def test_moments_add_up_over_batches_and_folds_whatever_their_origin(rows):
    x, y = rows
    fold = torch.arange(N) % 3
    origins = {"x": torch.full((D_IN,), 1.4), "y": torch.full((D_OUT,), -2.2)}
    sums = FoldSums(origins, [("x", "y")], 3)
    for part in torch.arange(N).split(77):
        sums.add({"x": x[part], "y": y[part]}, fold[part])
    assert sums.n == [100, 100, 100]
    for f, found in enumerate(sums.moments(("x", "y"))):
        mine = fold == f
        for a, b in zip(found.centred(), PairMoments.of(x[mine], y[mine]).centred(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-6)
        torch.testing.assert_close(found.mean_x + origins["x"], x[mine].mean(0))


def test_each_fold_is_predicted_by_a_map_of_the_others(rows):
    x, y = rows
    fit = cross_validated([PairMoments.of(a, b) for a, b in folds(x, y)], [0.01])
    missed = torch.zeros(2, D_OUT, D_OUT).double()
    for i, (a, b) in enumerate(folds(x, y)):
        others = torch.arange(N) % 5 != i
        maps = Spectrum.of(PairMoments.of(x[others], y[others])).reduced_rank(0.01)
        for k, error in enumerate((b - maps.transport()(a), b - y[others].mean(0))):
            missed[k] += error.T @ error
    torch.testing.assert_close(fit.residual, missed[0])
    torch.testing.assert_close(fit.spread, missed[1])
    r2 = 1 - missed[0].trace() / missed[1].trace()
    assert float(fit.curves.r2[-1]) == pytest.approx(float(r2))
    assert float(fit.curves.r2[0]) == 0


def test_the_ridge_is_chosen_by_documents_that_the_fit_did_not_see():
    # More numbers than the folds determine: without a ridge the map is noise.
    x, y = normal(4, 60, 40), normal(5, 60, 3)
    fit = cross_validated([PairMoments.of(a, b) for a, b in folds(x, y)])
    bare = cross_validated([PairMoments.of(a, b) for a, b in folds(x, y)], [0.0])
    assert fit.ridge > 0.01
    assert float(fit.curves.r2[-1]) > float(bare.curves.r2[-1]) + 1


def test_an_exact_map_of_low_rank_is_efficient_and_its_size_is_its_rank():
    # P4.5, on documents that no map was fitted on.
    x = normal(6, N, D_IN)
    y = x @ normal(7, D_IN, 2) @ normal(8, 2, D_OUT) + 4
    fit = cross_validated([PairMoments.of(a, b) for a, b in folds(x, y)])
    for curve in (fit.curves.r2, fit.curves.whitened, fit.curves.fitted):
        torch.testing.assert_close(curve[2:], torch.ones(D_OUT - 1).double(), atol=1e-6, rtol=0)
    assert float(fit.curves.fitted[1] / fit.curves.ceiling[1]) == pytest.approx(1, abs=1e-6)
    assert float(fit.held_out_rho[:2].min()) == pytest.approx(1, abs=1e-6)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = normal(9, 12)
    sums = torch.stack([values, torch.ones(12).double()], dim=1)
    value, low, high = jackknife(sums, lambda s: (s[0] / s[1])[None], sums[:, 1:] > 0)
    assert float(value) == pytest.approx(float(values.mean()))
    half = float(student(torch.tensor(11))) * float(values.std()) / 12**0.5
    assert float(high - value) == pytest.approx(half) == float(value - low)
    few = sums[:2]
    assert jackknife(few, lambda s: (s[0] / s[1])[None], few[:, 1:] > 0)[1].isnan().all()


@pytest.mark.parametrize(("freedom", "quantile"), [(2, 4.303), (4, 2.776), (19, 2.093)])
def test_students_quantiles_are_those_of_the_tables(freedom, quantile):
    assert float(student(torch.tensor(freedom))) == pytest.approx(quantile, rel=0.01)

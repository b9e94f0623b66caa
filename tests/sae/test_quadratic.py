"""Kernels of quadratic forms equal the d x d matrices that they avoid."""

import pytest
import torch

from saelab.sae import quadratic
from saelab.sae.quadratic import (
    Forms,
    fit_of_few,
    hoyer_density,
    mean_hoyer_density,
    mean_square_norm,
    square_norms,
    square_norms_of_few,
)
from saelab.sae.quadratic_form import composite, spectrum

D, M, N = 5, 17, 11
KINDS = [(symmetric, ordered) for symmetric in (False, True) for ordered in (False, True)]


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def forms_of(symmetric=True, ordered=False, seed=0):
    left, right = (drawn(M, D, seed=seed + i).requires_grad_() for i in (1, 2))
    return Forms(left, right, symmetric, ordered)


def matrices(g, forms):
    """sum_j g_j form_j of every row, as d x d matrices."""
    each = torch.einsum("ji,jk->jik", forms.left, forms.right)
    if forms.symmetric:
        each = (each + each.mT) / 2
    return torch.einsum("nj,jik->nik", g, each)


def plain_norms(g, forms):
    if not forms.ordered:
        return matrices(g, forms).pow(2).sum((1, 2))
    prefixes = [g * (torch.arange(M) < p) for p in range(1, M + 1)]
    return torch.stack([matrices(p, forms).pow(2).sum((1, 2)) for p in prefixes]).mean(0)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(quadratic, "TILE", 7)
    monkeypatch.setattr(quadratic, "NUMBERS_AT_ONCE", 3 * 4 * D)


@pytest.mark.parametrize(("symmetric", "ordered"), KINDS)
def test_norms_and_gradients_equal_those_of_the_matrices(symmetric, ordered):
    forms, g = forms_of(symmetric, ordered), drawn(N, M).requires_grad_()
    expected = plain_norms(g, forms)
    torch.testing.assert_close(square_norms(g, forms), expected)
    mean = mean_square_norm(g, forms)
    torch.testing.assert_close(mean, expected.mean())
    of = (g, forms.left, forms.right)
    mine, plain = (torch.autograd.grad(2 * value, of) for value in (mean, expected.mean()))
    torch.testing.assert_close(mine, plain)


@pytest.mark.parametrize(("symmetric", "ordered"), KINDS)
def test_few_active_forms_have_the_norms_and_gradients_of_all(symmetric, ordered):
    forms, u = forms_of(symmetric, ordered), drawn(N, D, seed=5).requires_grad_()
    indices = torch.stack([torch.randperm(M)[:4] for _ in range(N)])
    dense = (u @ forms.left.T) * (u @ forms.right.T)
    kept = torch.zeros(N, M).double().scatter(1, indices, dense.gather(1, indices))
    expected = plain_norms(kept, forms)
    values, square = fit_of_few(u, indices, forms)
    torch.testing.assert_close(values, dense.gather(1, indices))
    torch.testing.assert_close(square, expected)
    plain = square_norms_of_few(kept.gather(1, indices), indices, forms)
    torch.testing.assert_close(plain, expected)
    of = (u, forms.left, forms.right)
    mine, theirs = (torch.autograd.grad(v.sum(), of) for v in (square, expected))
    torch.testing.assert_close(mine, theirs)


def test_the_symmetric_part_is_never_further_from_a_symmetric_matrix():
    g, forms = drawn(N, M), forms_of()
    u = torch.nn.functional.normalize(drawn(N, D, seed=9), dim=1)
    X = u[:, :, None] * u[:, None, :]
    errors = [
        (X - matrices(g, Forms(forms.left, forms.right, symmetric))).pow(2).sum((1, 2))
        for symmetric in (True, False)
    ]
    assert bool((errors[0] <= errors[1]).all())
    assert bool((errors[0] < errors[1] - 1e-3).any())


@pytest.mark.parametrize("symmetric", [False, True])
def test_cosines_of_forms_are_those_of_their_matrices(symmetric):
    forms = forms_of(symmetric)
    flat = matrices(torch.eye(M).double(), forms).flatten(1)
    torch.testing.assert_close(forms.kernel(slice(3, 9)), flat[3:9] @ flat.T)
    torch.testing.assert_close(forms.norms(), flat.norm(dim=1))


def test_a_form_has_the_two_eigenvalues_of_its_matrix():
    left, right = drawn(2, D, seed=3)
    form = spectrum(left, right)
    matrix = (torch.outer(left, right) + torch.outer(right, left)) / 2
    values = torch.linalg.eigvalsh(matrix)
    assert float(form.values.max()) > 0 > float(form.values.min())
    torch.testing.assert_close(form.values.sort().values, values[[0, -1]])
    torch.testing.assert_close(form.vectors.T @ (form.values[:, None] * form.vectors), matrix)
    x = drawn(N, D, seed=4)
    torch.testing.assert_close(form.at(x), (x @ left) * (x @ right))
    assert form.share(1) < 1 == form.share()


def test_parallel_factors_have_rank_one():
    left = drawn(D)
    form = spectrum(left, -3 * left)
    torch.testing.assert_close(form.values, torch.tensor([-3.0, 0.0]).double() * (left @ left))
    assert not form.vectors[1].any()
    assert form.share(1) == 1


def test_a_composite_form_is_the_weighted_sum():
    forms, weights = forms_of(), drawn(M, seed=8)
    form, x = composite(weights, forms.left.detach(), forms.right.detach()), drawn(N, D)
    expected = ((x @ forms.left.T) * (x @ forms.right.T)) @ weights
    torch.testing.assert_close(form.at(x.float()), expected.float(), rtol=1e-4, atol=1e-4)


def test_hoyer_density_is_zero_for_one_row_and_one_for_all_alike():
    f = torch.tensor([[0.0, -2.0, 0.0, 1.0], [3.0, 2.0, 0.0, 2.0], [0.0, 2.0, 0.0, 0.5]])
    density = hoyer_density(f)
    torch.testing.assert_close(density[:3], torch.tensor([0.0, 1.0, 0.0]))
    assert 0 < density[3] < 1
    prefixes = [density[:p].mean() for p in range(1, 5)]
    torch.testing.assert_close(mean_hoyer_density(f, ordered=True), torch.stack(prefixes).mean())
    torch.testing.assert_close(mean_hoyer_density(f), density.mean())


def test_a_latent_that_never_fires_gives_no_nan():
    f = torch.zeros(3, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(mean_hoyer_density(f), f)
    assert bool(grad.isfinite().all())

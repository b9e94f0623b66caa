"""Bilinear autoencoder (arXiv 2510.16820): error, invariances, selection, and planted circles."""

import pytest
import torch
from torch.nn import functional as F

from saelab.config import UsageError
from saelab.sae.bilinear import BilinearConfig
from saelab.sae.context import LossContext
from saelab.testing.steps import loss_of, train_step
from saelab.types import ActivationBatch

D, M = 6, 24
KINDS = [
    {},
    {"symmetric": False},
    {"ordered": True},
    {"bottleneck": 9},
    {"bottleneck": 9, "ordered": True},
    {"k": 3},
    {"k": 3, "ordered": True},
    {"k": 3, "bottleneck": 9},
]


def rows(n=32, d=D, seed=1):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def made(d=D, **options):
    sae = BilinearConfig.model_validate({"d_sae": M} | options).build(d, torch.Generator().manual_seed(0))
    sae.initialise(rows(d=d))
    return sae


def matrices(sae, f, n=M):
    """X_hat of dense codes by the first n latents, from the definition."""
    g = f if sae.W_mix is None else f @ sae.W_mix.T @ sae.W_mix
    X = torch.einsum("nj,ji,jk->nik", g[:, :n], sae.W_left[:n], sae.W_right[:n])
    return (X + X.mT) / 2 if sae.config.symmetric else X


def outer(x):
    u = F.normalize(x, dim=1)
    return u[:, :, None] * u[:, None, :]


@pytest.mark.parametrize("options", KINDS, ids=str)
@torch.no_grad()
def test_the_error_is_that_of_the_matrices(options):
    sae, x = made(**options).double(), rows().double()
    done = sae.training_pass(ActivationBatch(x), LossContext(1.0))
    u = F.normalize(x, dim=1)
    f = (u @ sae.W_left.T) * (u @ sae.W_right.T)
    if sae.config.k is not None:
        f = torch.where(f.abs() >= f.abs().topk(sae.config.k, dim=1).values[:, -1:], f, 0.0)
    prefixes = [(outer(x) - matrices(sae, f, n)).pow(2).sum((1, 2)).mean() for n in range(1, M + 1)]
    wanted = torch.stack(prefixes).mean() if sae.config.ordered else prefixes[-1]
    torch.testing.assert_close(done.error, wanted)
    torch.testing.assert_close(done.outer.error, prefixes[-1])


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_the_fit_of_inferred_codes_is_that_of_their_matrices(options):
    sae, x = made(threshold=0.1, **options), rows()
    codes = sae.encode(x)
    assert 0 < codes.mean_l0() < M
    X, X_hat, fit = outer(x), matrices(sae, codes.dense()), sae.outer_fit(x, codes)
    torch.testing.assert_close(fit.inner, (X * X_hat).sum((1, 2)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fit.square, X_hat.pow(2).sum((1, 2)), rtol=1e-4, atol=1e-5)


def test_the_logged_variance_is_that_of_the_matrices():
    X = outer(rows())
    expected = (X - X.mean(0)).pow(2).sum((1, 2)).mean()
    torch.testing.assert_close(made().variance, expected)
    terms = loss_of(made(), rows(), LossContext(7.0))
    torch.testing.assert_close(terms.variance, expected)


def test_codes_do_not_know_the_sign_or_the_length():
    sae, x = made(), rows()
    for same in (-x, 3 * x, 1e-3 * x):
        torch.testing.assert_close(sae.encode(same).dense(), sae.encode(x).dense())


def test_a_zero_row_has_no_code_and_no_error():
    sae = made()
    x = torch.zeros(2, D)
    assert sae.encode(x).mean_l0() == 0
    assert float(sae.training_pass(ActivationBatch(x), LossContext(1.0)).error.detach()) == 0


def test_few_latents_per_row_train_as_by_the_whole_kernel(monkeypatch):
    x, found = rows(), []
    for few in (True, False):
        sae = made(d_sae=200, k=3)
        assert sae._few(sae.encode(x))
        monkeypatch.setattr(type(sae), "_few", lambda self, codes, few=few: few)
        done = sae.training_pass(ActivationBatch(x), LossContext(1.0))
        grads = torch.autograd.grad(done.error, (sae.W_left, sae.W_right))
        found.append((done.error, done.codes.dense(), *grads))
        monkeypatch.undo()
    torch.testing.assert_close(*map(list, found), rtol=1e-4, atol=1e-6)


def test_a_mixed_latents_form_is_its_composite_atom():
    sae = made(bottleneck=9)
    form, u = sae.quadratic_form(5), F.normalize(rows(), dim=1)
    atom = matrices(sae, torch.eye(M))[5]
    torch.testing.assert_close(form.at(u), torch.einsum("ni,ij,nj->n", u, atom, u))


@torch.no_grad()
def test_the_penalty_rises_and_needs_no_k():
    sae, x = made(), rows()
    start, later = (loss_of(sae, x, LossContext(1.0, step=s, n_steps=4)) for s in (0, 2))
    assert float(start.total) == pytest.approx(float(start.mse_sum))
    risen = float(later.total - start.total)
    assert risen == pytest.approx(0.1 * float(later.parts["hoyer"]), rel=1e-3)
    assert not loss_of(made(k=3), x, LossContext(1.0)).parts


def test_a_bottleneck_wider_than_the_latents_is_refused():
    with pytest.raises(UsageError, match="bottleneck=25 exceeds d_sae=24"):
        made(bottleneck=25)


@pytest.mark.unchecked
def test_planted_circles_are_found():
    """Each row is a point of one of four circles in orthogonal planes; latents find the planes.

    A plane has a latent whose form lies in it and has two eigenvalues there, which no latent of a
    single direction has.
    """
    generator = torch.Generator().manual_seed(0)
    planes = torch.linalg.qr(torch.randn(12, 8, generator=generator)).Q.T.reshape(4, 2, 12)
    sae = BilinearConfig(d_sae=24, k=3).build(12, generator)
    optimizer, steps = torch.optim.Adam(sae.parameters(), lr=1e-2), 400
    x = torch.zeros(0, 12)
    for step in range(steps):
        angle = 2 * torch.pi * torch.rand(256, generator=generator)
        point = torch.stack([angle.cos(), angle.sin()], dim=1)
        which = torch.randint(4, (256,), generator=generator)
        x = torch.einsum("np,npd->nd", point, planes[which])
        if step == 0:
            sae.initialise(x)
        train_step(sae, optimizer, x, LossContext(1.0, step=step, n_steps=steps))
    with torch.no_grad():
        found = loss_of(sae, x, LossContext(1.0))
        assert found.variance is not None
        assert float(found.mse_sum / found.variance) < 0.02
        atoms = matrices(sae, torch.eye(24), 24)
        for plane in planes:
            inside = plane @ atoms @ plane.T
            share = inside.pow(2).sum((1, 2)) / atoms.pow(2).sum((1, 2))
            size = torch.linalg.eigvalsh(inside).abs()
            assert bool(((share > 0.98) & (size.amin(1) > 0.1 * size.amax(1))).any())

"""A bilinear latent's manifold, against the matrix of its form, and the rest of such a run."""

import numpy as np
import pytest
import torch
from conftest import small_config
from torch.nn import functional as F

from saelab.activations.arrays import write_arrays
from saelab.analysis.features import FeatureOptions, collect_features
from saelab.analysis.manifold import latent_manifold
from saelab.config import UsageError
from saelab.drawing import figure
from saelab.evaluation.evaluate import evaluate
from saelab.evaluation.options import EvaluateOptions
from saelab.sae.bilinear import BilinearConfig
from saelab.training.config import TrainConfig
from saelab.training.loop import train
from saelab.training.source import Source


@pytest.fixture(scope="module")
def run(small_store, tmp_path_factory):
    config = small_config(small_store, sae=BilinearConfig(d_sae=24, k=3))
    return train(config, out=tmp_path_factory.mktemp("runs") / "bilinear", device="cpu")


def form_of(run, latent):
    sae = run.load_sae()
    atom = torch.outer(sae.W_left[latent], sae.W_right[latent])
    return (atom + atom.T) / 2


def test_points_are_the_rows_in_the_plane_of_the_form(run, small_store):
    found = latent_manifold(run, 5, n_rows=200, n_points=60)
    matrix = form_of(run, 5)
    values, vectors = torch.linalg.eigh(matrix)
    order = values.abs().argsort(descending=True)[:2]
    torch.testing.assert_close(torch.tensor(found.values), values[order])
    rows = small_store.sample_rows(200, 0)
    u = F.normalize(small_store.site(run.config.site).take(rows).float(), dim=1)
    strength = torch.einsum("ni,ij,nj->n", u, matrix, u)
    strongest = strength.abs().topk(30)
    assert found.n_strongest == 30
    assert np.allclose(abs(found.strength[:30]), strongest.values.numpy(), atol=1e-5)
    planes = (u[strongest.indices] @ vectors[:, order]).abs().numpy()
    assert np.allclose(abs(found.points[:30]), planes, atol=1e-5)
    assert len(found.points) == len(found.strength) == len(found.tokens) == 60
    ids, positions = small_store.row_tokens(rows)
    columns = [small_store.tokens(unit) for unit in small_store.units]
    assert (ids == np.concatenate([c.token for c in columns])[rows]).all()
    assert (positions == np.concatenate([c.position for c in columns])[rows]).all()
    assert found.tokens[0] == f"token {ids[strongest.indices[0]]}"


def test_its_features_have_neighbours_by_form_and_no_logits(run, random_lm):
    features = collect_features(run, random_lm, FeatureOptions(n_tokens=300, reach=3))
    assert "logits/top_tokens" not in features.file
    atoms = torch.stack([form_of(run, i).flatten() for i in range(24)])
    cosine = F.normalize(atoms, dim=1) @ F.normalize(atoms[3], dim=0)
    cosine[3] = 0
    neighbour, value = features[3].neighbours[0]
    assert neighbour == int(cosine.abs().argmax())
    assert value == pytest.approx(float(cosine[neighbour]), abs=1e-5)
    found = latent_manifold(run, 3, n_rows=50, n_points=10)
    assert set(found.tokens) <= set(features.file.vocabulary)


def test_what_needs_decoder_rows_is_skipped_with_the_reason(run, random_lm):
    found = evaluate(run, random_lm, EvaluateOptions(suite="full", n_tokens=200, n_sample=200))
    for name in ("downstream", "dictionary", "description_length", "uniformity", "ablation"):
        assert "no decoder rows" in found.skipped[name]
    assert found.reconstruction["outer"] == 1
    assert found.reconstruction["l0"] == 3


def test_fvu_is_that_of_the_outer_products(tmp_path):
    x = torch.randn(6000, 8, generator=torch.Generator().manual_seed(0))
    store = write_arrays(tmp_path / "store", {"x": x})
    config = TrainConfig(
        sae=BilinearConfig(d_sae=12, k=2), activations=store, site="x", n_tokens=2000, lr=1e-2
    )
    run = train(config, out=tmp_path / "run", device="cpu")
    found = evaluate(run).reconstruction
    sae = run.load_sae()
    rows = Source([config.with_every_row()], torch.device("cpu")).calibration_rows().float()
    u, f = F.normalize(rows, dim=1), sae.encode(rows).dense()
    X = torch.einsum("ni,nj->nij", u, u)
    X_hat = torch.einsum("nj,ji,jk->nik", f, sae.W_left, sae.W_right)
    X_hat = (X_hat + X_hat.mT) / 2
    error, spread = ((a - b).pow(2).sum((1, 2)) for a, b in ((X, X_hat), (X, X.mean(0))))
    assert found["fvu"] == pytest.approx(float(error.sum() / spread.sum()), rel=1e-4)
    assert found["mse_sum"] == pytest.approx(float(error.mean()), rel=1e-4)
    assert found["fvu_row_mean"] == pytest.approx(float((error / spread).mean()), rel=0.01)
    cosine = F.cosine_similarity(X.flatten(1), X_hat.flatten(1))
    assert found["cosine"] == pytest.approx(float(cosine.mean()), rel=1e-4)
    assert latent_manifold(run, 0, n_points=10).tokens == [""] * 10


def test_linear_latents_and_missing_ones_are_refused(run, small_run):
    with pytest.raises(UsageError, match="latents of a topk SAE are directions"):
        latent_manifold(small_run, 0)
    with pytest.raises(UsageError, match="There is no latent 24; the SAE has 0 to 23"):
        latent_manifold(run, 24)


def test_the_figure_has_the_points_and_the_eigenvalues(run):
    found = latent_manifold(run, 5, n_rows=200, n_points=60)
    points, bars = figure(found).to_dict()["data"]
    assert sorted(points["x"]) == pytest.approx(sorted(found.points[:, 0].tolist()))
    assert list(points["marker"]["color"]) == sorted(found.strength.tolist(), key=abs)
    assert list(bars["y"]) == pytest.approx(found.values)

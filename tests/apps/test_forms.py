"""Pages of a run whose latents are quadratic forms."""

import pytest
from apps.driving import drawn
from conftest import small_config

from saelab.analysis.features import FeatureOptions, collect_features
from saelab.config import UsageError
from saelab.sae.bilinear import BilinearConfig
from saelab.training.loop import train


@pytest.fixture(scope="module")
def runs(small_store, random_lm, tmp_path_factory):
    root = tmp_path_factory.mktemp("forms")
    config = small_config(small_store, sae=BilinearConfig(d_sae=24, k=3))
    run = train(config, out=root / "bilinear", device="cpu")
    collect_features(run, random_lm, FeatureOptions(n_tokens=300, n_examples=12, reach=3))
    return root


def test_a_latents_page_shows_its_plane_instead_of_logits(runs, open_app):
    page = drawn(open_app(runs, view="latent", run="bilinear", latent="3"))
    assert "Activations in the plane of its form" in page
    assert page.count('class="point') > 100
    assert "writes to the logits" not in page


def test_a_missing_store_is_said_on_the_page(runs, open_app, monkeypatch):
    def missing(*_, **__):
        raise UsageError("The store is gone.")

    monkeypatch.setattr("feature_browser.pages.latent.plane_card.manifold", missing)
    page = drawn(open_app(runs, view="latent", run="bilinear", latent="4"))
    assert "The store is gone." in page
    assert "Neighbours" in page


@pytest.mark.parametrize("view", ["steering", "circuit"])
def test_pages_that_need_decoder_rows_say_so(runs, open_app, view):
    assert "A bilinear SAE has no decoder rows" in drawn(open_app(runs, view=view, run="bilinear"))

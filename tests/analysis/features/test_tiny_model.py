"""Evidence of the shipped model: stored activations and strata, against encoding the text anew."""

import numpy as np
import pytest
import torch

from saelab.activations.corpus import load_corpus
from saelab.activations.harvest import HarvestOptions, harvest
from saelab.analysis.features import FeatureOptions, collect_features
from saelab.sae.abs_topk import AbsTopKConfig
from saelab.sae.topk import TopKConfig
from saelab.training.config import TrainConfig
from saelab.training.loop import train_many

# Training two SAEs of the shipped model takes a few seconds.
pytestmark = pytest.mark.slow

SITE = "blocks.2.hook_resid_post"
SAES = {"topk": TopKConfig(d_sae=96, k=8), "abs-topk": AbsTopKConfig(d_sae=96, k=8)}


@pytest.fixture(scope="module")
def runs(tiny_lm, tmp_path_factory):
    directory = tmp_path_factory.mktemp("evidence")
    options = HarvestOptions(n_tokens=4000, dtype="float32")
    corpus = load_corpus("tiny", tiny_lm)
    store = harvest(tiny_lm, [SITE], corpus, out=directory / "store", options=options)
    configs = {
        directory / name: TrainConfig(
            sae=sae,
            activations=store.path,
            site=SITE,
            n_tokens=20_000,
            batch_size=500,
            lr=3e-3,
        )
        for name, sae in SAES.items()
    }
    return dict(zip(SAES, train_many(configs, device="cpu"), strict=True))


@pytest.fixture(scope="module", params=list(SAES))
def case(request, runs, tiny_lm):
    """Features of the text, and a fresh encode of all of it: `[context, pos, latent]`."""
    run = runs[request.param]
    features = collect_features(run, tiny_lm, FeatureOptions(n_tokens=6000, n_examples=10, reach=4))
    tokens = np.asarray(features.file["corpus/tokens"])
    special = [-1, *tiny_lm.info.special_token_ids]
    real = torch.from_numpy(~np.isin(tokens, special))
    x = tiny_lm.capture(torch.from_numpy(np.maximum(tokens, 0)).long(), [SITE])[SITE]
    dense = torch.zeros(*tokens.shape, 96)
    with torch.no_grad():
        dense[real] = run.load_sae().encode(x[real]).dense()
    return features, dense.numpy()


def test_a_thousand_random_stored_activations_equal_a_fresh_encode(case):
    features, dense = case
    stored = {
        (record.latent, example.context, token.position): token.activation
        for record in features
        for examples in record.examples.values()
        for example in examples
        for token in example.tokens
    }
    places = list(stored)
    chosen = np.random.default_rng(0).choice(len(places), 1000, replace=False)
    pairs = [(stored[places[i]], dense[places[i][1:] + places[i][:1]]) for i in chosen]
    found, fresh = np.array(pairs).T
    assert len({places[i][1:] for i in chosen}) > 700
    # Activations around a peak are kept in half precision.
    assert np.allclose(found, fresh, rtol=2e-3, atol=2e-3)
    assert ((found != 0) == (fresh != 0)).mean() > 0.999
    assert (fresh != 0).sum() > 150


def test_strata_counts_equal_brute_force(case):
    features, dense = case
    n_checked = 0
    for record in features:
        size = np.abs(dense[:, :, record.latent])
        size = np.sort(size[size > 0])
        assert record.n_fired == len(size) == sum(part.population for part in record.strata)
        bounds = [part.low for part in record.strata]
        starts = np.cumsum([0, *(part.population for part in record.strata)])[:-1]
        # A fresh encode may differ from the pass in the last bits, which move what lies at a bound.
        first, last = (np.searchsorted(size, np.array(bounds) * (1 + by)) for by in (-1e-5, 1e-5))
        assert ((first <= starts) & (starts <= last)).all()
        n_checked += len(size) > 10
    assert n_checked > 40

"""Stored features are what a fresh encode gives, and files from elsewhere are not trusted."""

import h5py
import numpy as np
import pytest
import torch
from conftest import small_config

from saelab.analysis.feature_file import FeatureFile, write_features
from saelab.analysis.features import FeatureOptions, collect_features, neighbour_arrays
from saelab.analysis.records import Features
from saelab.config import UsageError
from saelab.training.loop import train

OPTIONS = FeatureOptions(n_tokens=300, n_examples=4, reach=3, batch_size=7)


@pytest.fixture(scope="module", params=["topk", "abs-topk"])
def run(request, small_store, tmp_path_factory):
    sae = {"variant": request.param, "d_sae": 32, "k": 4}
    config = small_config(small_store, sae=sae, n_tokens=1000)
    return train(config, out=tmp_path_factory.mktemp("features") / request.param)


@pytest.fixture(scope="module")
def features(run, random_lm):
    return collect_features(run, random_lm, OPTIONS)


@pytest.fixture(scope="module")
def dense(run, random_lm, features):
    """A fresh encode of every stored context: `[context pos latent]`, zero at special tokens."""
    tokens = np.asarray(features.file["corpus/tokens"])
    real = torch.from_numpy(~np.isin(tokens, [-1, *random_lm.info.special_token_ids]))
    model_tokens = torch.from_numpy(np.where(tokens < 0, 0, tokens)).long()
    x = random_lm.capture(model_tokens, [run.config.site])[run.config.site][real]
    out = torch.zeros(*tokens.shape, 32)
    out[real] = run.load_sae().encode(x).dense()
    return out.numpy()


def test_every_stored_activation_equals_a_fresh_encode(features, dense):
    checked = 0
    for record in features:
        for example in (e for kind in record.examples.values() for e in kind):
            for token in example.tokens:
                fresh = dense[example.context, token.position, record.latent]
                assert token.activation == pytest.approx(fresh, rel=2e-3, abs=1e-4)
                checked += 1
    assert checked > 1000


def test_counts_and_moments_equal_brute_force(features, dense):
    for record in features:
        mine = dense[:, :, record.latent]
        assert record.n_fired == (mine != 0).sum()
        assert record.n_negative == (mine < 0).sum()
        assert record.max == pytest.approx(np.abs(mine).max(), rel=1e-5)
        if record.n_fired:
            assert record.mean == pytest.approx(np.abs(mine[mine != 0]).mean(), rel=1e-4)
        assert record.histogram.sum() == record.n_fired


def test_top_examples_are_the_largest_one_per_context(features, dense):
    for record in features:
        best = np.sort(dense[:, :, record.latent].max(axis=1))[::-1][:4]
        found = [example.value for example in record.examples["top"]]
        assert found == pytest.approx(best[best > 0], rel=1e-5)


def test_signed_codes_have_negative_examples_and_others_have_none(features, run, dense):
    assert ("negative" in features.file.kinds) == (run.config.sae.variant == "abs-topk")
    for record in features:
        values = [example.value for example in record.examples.get("negative", [])]
        assert all(value < 0 for value in values)
        if values:
            assert values[0] == pytest.approx(dense[:, :, record.latent].min(), rel=1e-5)


def test_logit_tokens_are_the_extremes_of_the_direct_effect(features, run, random_lm):
    effects = random_lm.logit_effects(run.config.site, run.load_sae().W_dec)
    for latent in (0, 31):
        record = features[latent]
        assert record.raised[0][1] == pytest.approx(float(effects[latent].max()), abs=1e-5)
        assert record.lowered[0][1] == pytest.approx(float(effects[latent].min()), abs=1e-5)
        top = random_lm.tokenizer.token(int(effects[latent].argmax()))
        assert record.raised[0][0] == top


def test_neighbours_are_the_nearest_by_absolute_cosine_and_never_oneself():
    W = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(W, dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(0)
    arrays = neighbour_arrays(W)
    expected = cosine.abs().sort(dim=1, descending=True).indices[:, :8]
    assert (arrays["neighbours/latents"] == expected.numpy()).all()
    taken = cosine.gather(1, expected).numpy()
    assert np.allclose(arrays["neighbours/cosine"], taken, atol=1e-6)


def test_every_dataset_is_contiguous_so_that_it_can_be_mapped(features):
    with h5py.File(features.file.path) as h5:
        names: list[str] = []
        h5.visit(names.append)
        found = [h5[name] for name in names]
        datasets = [item for item in found if isinstance(item, h5py.Dataset)]
        assert datasets
        for dataset in datasets:
            assert dataset.chunks is None
            assert dataset.id.get_offset() is not None


def test_a_latent_out_of_range_is_refused_with_the_range(features):
    with pytest.raises(UsageError, match="no latent 32; the SAE has 0 to 31"):
        features[32]


def test_missing_features_say_what_makes_them(small_run):
    with pytest.raises(UsageError, match="run `saelab features` first"):
        Features(small_run.path)


def test_external_links_and_compressed_datasets_are_refused(tmp_path):
    path = tmp_path / "features.h5"
    write_features(path, {"latent/n_fired": np.zeros(3)}, {})
    with h5py.File(path, "a") as h5:
        h5["latent/elsewhere"] = h5py.ExternalLink("/etc/hosts", "/")
    with pytest.raises(UsageError, match="elsewhere is a link"):
        FeatureFile(path)
    with h5py.File(path, "a") as h5:
        del h5["latent/elsewhere"]
        h5.create_dataset("latent/packed", data=np.zeros(9), compression="gzip")
    with pytest.raises(UsageError, match="not stored contiguously"):
        FeatureFile(path)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "features.h5"
    write_features(path, {"latent/n_fired": np.zeros(3000)}, {})
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(UsageError, match=r"features\.h5"):
        FeatureFile(path)

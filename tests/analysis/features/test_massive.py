"""Which latents fire on massive activations, counted in the dense codes of a fresh pass."""

import shutil

import numpy as np
import pytest
import torch
from analysis.features.cases import random_case
from conftest import SINK, WORDS, small_config

from saelab.analysis.features import FeatureOptions, collect_features
from saelab.analysis.features import collect as collect_module
from saelab.analysis.features.evidence import on_massive_rows
from saelab.analysis.records import MASSIVE, Features
from saelab.config import UsageError
from saelab.training.loop import train
from saelab.training.run import Run

OPTIONS = FeatureOptions(n_tokens=300, n_examples=4, reach=3, batch_size=7, near_miss_ranks=0)


@pytest.fixture(scope="module")
def kept(sink_store, sink_lm, tmp_path_factory):
    """A run that was trained on massive activations too."""
    config = small_config(sink_store, outliers="keep", n_tokens=3000)
    run = train(config, out=tmp_path_factory.mktemp("kept") / "run")
    return run, collect_features(run, sink_lm, OPTIONS)


def dense(run, lm, features):
    """Codes `[row latent]` of the rows that features are of, and which rows are massive."""
    tokens = torch.from_numpy(np.array(features.file["corpus/tokens"])).long()
    real = ~torch.isin(tokens, torch.tensor([-1, *lm.info.special_token_ids]))
    x = lm.capture(tokens.clamp_min(0), [run.config.site])[run.config.site]
    codes = run.load_sae().encode(x[real]).dense().detach().numpy()
    return codes, (tokens[real] == WORDS.index(SINK)).numpy(), tokens[real].numpy()


def test_firings_on_massive_rows_are_counted(kept, sink_lm):
    run, features = kept
    codes, massive, _ = dense(run, sink_lm, features)
    assert run.domain.max_norm is None
    assert features.file.facts["massive"]["rows"] == massive.sum() > 0
    fired = codes != 0
    np.testing.assert_array_equal(features.file["latent/n_massive"], fired[massive].sum(0))
    share = fired[massive].sum(0) / np.maximum(1, fired.sum(0))
    np.testing.assert_allclose(features.table()["massive"], share)
    kinds = [record.massive for record in features]
    for kind, own, there in zip(kinds, fired.sum(0), fired[massive].sum(0), strict=True):
        assert (kind == "only") == (own == there > 0)
        assert kind != "" or 2 * there <= own
    assert "only" in kinds
    assert "" in kinds
    assert [MASSIVE[k] for k in features.massive] == kinds


def test_a_latent_whose_largest_firings_are_massive_serves_them_mostly(tmp_path):
    case = random_case(tmp_path, 3, d_sae=5)
    firings = case.codes.firings(1, 4)
    massive = np.random.default_rng(0).random(case.codes.n_rows) < 0.3
    found = on_massive_rows(firings, massive, 3)
    for latent in range(1, 4):
        value = case.rows[:, latent]
        assert found["latent/n_massive"][latent - 1] == ((value != 0) & massive).sum()
        n = 0
        context = case.mask.nonzero()[0]
        for sign in (1, -1):
            # The largest firing of each context, the first of equal ones; of them the largest.
            best = {}
            for row in np.flatnonzero(value * sign > 0):
                c = context[row]
                if c not in best or abs(value[row]) > abs(value[best[c]]):
                    best[c] = row
            rows = sorted(best.values(), key=lambda r: (-abs(value[r]), r))[:3]
            n += sum(massive[r] for r in rows)
        assert found["latent/n_massive_top"][latent - 1] == n


def test_a_run_that_left_them_out_has_none_among_its_rows(sink_run, sink_lm, tmp_path):
    run = Run(shutil.copytree(sink_run.path, tmp_path / "run"))
    features = collect_features(run, sink_lm, OPTIONS)
    codes, massive, _ = dense(run, sink_lm, features)
    assert massive.any()
    np.testing.assert_array_equal(features.file["latent/n_fired"], (codes[~massive] != 0).sum(0))
    assert features.file.facts["left_out"]["max_norm"] == run.domain.max_norm
    assert features.file.facts["massive"]["rows"] == 0
    assert not features.massive.any()
    # No example stands there.
    for record in features:
        for example in record.examples["top"]:
            token = features.file["corpus/tokens"][example.context, example.position]
            assert token != WORDS.index(SINK)


def test_without_the_store_it_is_not_known(kept, sink_lm, tmp_path, monkeypatch):
    def gone(path):
        raise UsageError(f"{path} does not exist.")

    monkeypatch.setattr(collect_module, "ActivationStore", gone)
    run = Run(shutil.copytree(kept[0].path, tmp_path / "run"))
    features = collect_features(run, sink_lm, OPTIONS)
    assert features.massive is None
    assert features[0].massive is None
    assert "massive" not in features.table()
    assert features.file.facts["massive"] is None


def test_a_store_without_massive_rows_has_no_such_latents(small_run, random_lm, tmp_path):
    run = Run(shutil.copytree(small_run.path, tmp_path / "run"))
    collect_features(run, random_lm, OPTIONS)
    assert not Features(run.path).massive.any()

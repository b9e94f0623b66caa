"""Stored features are what a fresh encode gives, and an interrupted pass loses nothing."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace

import h5py
import numpy as np
import pytest
import torch
from conftest import small_config

from saelab.analysis.features import FeatureOptions, collect_features
from saelab.analysis.features import reading as reading_module
from saelab.analysis.features.collect import collect_chosen, collected
from saelab.analysis.features.reading import DIRECTORY
from saelab.analysis.records import Features
from saelab.config import UsageError
from saelab.training.loop import train
from saelab.training.run import Run

OPTIONS = FeatureOptions(
    n_tokens=300, n_examples=4, reach=3, batch_size=7, checkpoint_every=90, n_silent=3
)
D_SAE = 32


@pytest.fixture(scope="module", params=["topk", "abs-topk", "batch-topk"])
def run(request, small_store, tmp_path_factory):
    sae = {"variant": request.param, "d_sae": D_SAE, "k": 4}
    site = "blocks.1.attn.hook_z" if request.param == "batch-topk" else "blocks.0.hook_resid_post"
    config = small_config(small_store, sae=sae, n_tokens=1000, site=site)
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
    out = torch.zeros(*tokens.shape, D_SAE)
    out[real] = run.load_sae().encode(x).dense()
    return out.detach().numpy()


def assert_near(found, wanted):
    """Equal but for the last bits of numbers, which products of other shapes round otherwise."""
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        for each, other in zip(found, wanted, strict=True):
            assert_near(each, other)
    elif is_dataclass(wanted):
        for field in fields(wanted):
            assert_near(getattr(found, field.name), getattr(wanted, field.name))
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    else:
        assert found == wanted


def test_evidence_of_chosen_latents_is_that_of_the_whole_collection(run, random_lm, features):
    fired = np.flatnonzero(features.table()["n_fired"])
    latents = [int(fired[-1]), int(fired[0]), int(fired[0])]
    chosen = collect_chosen(run, random_lm, latents, OPTIONS)
    assert chosen.numbers is not None
    assert chosen.numbers == (latents[1], latents[0])
    assert [record.latent for record in chosen] == list(chosen.numbers)
    for record in chosen:
        whole = features[record.latent]
        for name in ("n_fired", "max", "mean", "skew", "strata", "raised", "lowered"):
            assert_near(getattr(record, name), getattr(whole, name))
        assert_near(record.examples["top"], whole.examples["top"])
        assert features.fires_on(record.latent) == chosen.fires_on(record.latent)
        for name in ("neighbours", "encoder_neighbours"):
            found, expected = (dict(getattr(each, name)) for each in (record, whole))
            assert found.keys() == expected.keys()
            assert all(abs(found[n] - expected[n]) < 1e-5 for n in found)
        assert not record.coactive
    assert not list(run.path.glob("*.partial"))
    with pytest.raises(UsageError, match="--latents 31" if 31 not in latents else "--latents 30"):
        chosen[31 if 31 not in latents else 30]
    with pytest.raises(UsageError, match=r"There is no latent 32; .* has 0 to 31"):
        collect_chosen(run, random_lm, [0, D_SAE], OPTIONS)


def test_a_thousand_stored_activations_equal_a_fresh_encode(features, dense):
    pairs = [
        (token.activation, dense[example.context, token.position, record.latent])
        for record in features
        for kind in ("top", "strata", "random", "silent")
        for example in record.examples[kind]
        for token in example.tokens
    ]
    chosen = np.random.default_rng(0).choice(len(pairs), 1000, replace=False)
    stored, fresh = np.array(pairs)[chosen].T
    assert np.allclose(stored, fresh, rtol=2e-3, atol=1e-4)
    assert (fresh != 0).sum() > 200


def test_figures_equal_brute_force_on_the_fresh_encode(features, dense):
    for record in features:
        mine = dense[:, :, record.latent]
        size = np.abs(mine[mine != 0])
        assert record.n_fired == len(size)
        assert record.n_negative == (mine < 0).sum()
        assert record.max == pytest.approx(size.max(initial=0), rel=1e-5)
        assert record.histogram.sum() == record.n_fired
        assert sum(part.population for part in record.strata) == record.n_fired
        for part in record.strata[:-1]:
            # The edges are float32 firings of the pass: a fresh encode may differ in the last bit.
            inside = (size >= part.low * (1 - 1e-6)) & (size < part.high * (1 - 1e-6))
            assert part.population == inside.sum()


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


def test_near_misses_are_on_contexts_that_never_fire(features, dense):
    found = [(r.latent, e) for r in features for e in r.examples["near_miss"]]
    assert found
    for latent, example in found:
        assert not dense[example.context, :, latent].any()
        assert 0 < example.closeness <= 1
        assert not any(token.activation for token in example.tokens)


def test_head_weights_are_there_for_heads_only(features, run):
    shares = features[0].head_weights
    if run.config.site.endswith("hook_z"):
        assert len(shares) == 4
        assert sum(shares) == pytest.approx(1)
    else:
        assert shares == []


def test_every_dataset_is_contiguous_so_that_it_can_be_mapped(features):
    with h5py.File(features.file.path) as h5:
        names: list[str] = []
        h5.visit(names.append)
        found = [h5[name] for name in names]
        datasets = [item for item in found if isinstance(item, h5py.Dataset)]
        assert datasets
        for dataset in datasets:
            assert dataset.chunks is None
            assert dataset.size == 0 or dataset.id.get_offset() is not None


def test_the_file_says_where_it_comes_from_and_what_is_exact(features, run):
    facts = features.file.facts
    assert facts["options"]["n_tokens"] == 300
    assert facts["sae"]["variant"] == run.config.sae.variant
    assert {"model", "corpus", "sae_sha256", "training", "left_out"} <= set(facts)
    assert "near_miss" in facts["sampled"]
    assert "populations" in facts["exact"]
    json.dumps(facts, allow_nan=False)


class InterruptedPassError(RuntimeError):
    pass


@pytest.fixture
def copy(small_run, tmp_path):
    return Run(shutil.copytree(small_run.path, tmp_path / "run"))


def interrupt(run, lm, monkeypatch, after):
    """Collect, but stop as the batch number `after` is asked for."""
    whole = reading_module.stream

    def stopping(*args, **options):
        for i, batch in enumerate(whole(*args, **options)):
            if i == after:
                raise InterruptedPassError
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(reading_module, "stream", stopping)
        with pytest.raises(InterruptedPassError):
            collect_features(run, lm, OPTIONS)


def test_an_interrupted_pass_continues_and_gives_the_same_file(
    copy, random_lm, monkeypatch, tmp_path
):
    whole = Run(shutil.copytree(copy.path, tmp_path / "whole"))
    expected = collect_features(whole, random_lm, OPTIONS).file
    interrupt(copy, random_lm, monkeypatch, after=4)
    assert not copy.features_path.exists()
    done = len(list((copy.path / DIRECTORY).glob("codes_*.h5")))
    assert done > 0
    reads = []
    batches = reading_module.stream

    def counting(*args, **options):
        for batch in batches(*args, **options):
            reads.append(len(batch.x))
            yield batch

    monkeypatch.setattr(reading_module, "stream", counting)
    found = collect_features(copy, random_lm, OPTIONS).file
    assert sum(reads) < expected.facts["n_tokens"]
    assert not (copy.path / DIRECTORY).exists()
    assert found.arrays.keys() == expected.arrays.keys()
    for name in found.arrays:
        assert np.array_equal(found[name], expected[name]), name


def test_a_pass_continues_as_it_began_where_another_batch_size_is_the_default(
    copy, random_lm, monkeypatch, tmp_path
):
    whole = Run(shutil.copytree(copy.path, tmp_path / "whole"))
    expected = collect_features(whole, random_lm, OPTIONS).file
    interrupt(copy, random_lm, monkeypatch, after=4)
    found = collect_features(copy, random_lm, replace(OPTIONS, batch_size=None)).file
    assert found.arrays.keys() == expected.arrays.keys()
    for name in found.arrays:
        assert np.array_equal(found[name], expected[name]), name


def test_an_unfinished_pass_with_other_options_is_refused_by_name(copy, random_lm, monkeypatch):
    interrupt(copy, random_lm, monkeypatch, after=3)
    other = replace(OPTIONS, batch_size=5)
    with pytest.raises(UsageError, match=r"batch_size=7, now it is 5; .*delete the directory"):
        collect_features(copy, random_lm, other)
    # What only chooses among the codes may change.
    collect_features(copy, random_lm, replace(OPTIONS, n_examples=2, seed=5))


@pytest.mark.parametrize(("name", "value"), [("reach", 0), ("near_miss_ranks", -1)])
def test_options_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(UsageError, match=f"{name}={value}"):
        FeatureOptions(**{name: value})


def test_a_gpu_reads_more_short_contexts_at_once_unless_told():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    sizes = [FeatureOptions().contexts_at_once(device, 128) for device in (gpu, cpu)]
    assert sizes == [256, 32]
    assert FeatureOptions(batch_size=7).contexts_at_once(gpu, 128) == 7


def test_features_of_another_batch_size_are_not_collected_again(run, features):
    assert collected(run, replace(OPTIONS, batch_size=None)) is not None
    assert collected(run, replace(OPTIONS, reach=2)) is None


def test_missing_features_say_what_makes_them(small_run):
    with pytest.raises(UsageError, match="run `saelab features` first"):
        Features(small_run.path)

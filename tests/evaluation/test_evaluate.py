"""What an evaluation measures, saves and skips, on runs of every kind."""

import json
import math
import shutil
from dataclasses import asdict, replace
from importlib.metadata import version

import pytest
import torch
from conftest import small_config

from saelab.activations.arrays import write_arrays
from saelab.activations.corpus import load_corpus
from saelab.activations.harvest import HarvestOptions, harvest
from saelab.config import UsageError
from saelab.evaluation.arrays import evaluate_arrays
from saelab.evaluation.evaluate import evaluate
from saelab.evaluation.mdl import channel_bits, code_bits
from saelab.evaluation.measurement import measurements
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.suite import asked_for
from saelab.host.host import Host
from saelab.host.text import corpus_of, stream
from saelab.training.config import TrainConfig
from saelab.training.loop import train
from saelab.training.run import Run
from saelab.types import SparseCodes

FULL = EvaluateOptions(suite="full", reach=3, batch_size=3, n_ablated_tokens=4, n_tokens=200)


def fresh(run, directory):
    return Run(shutil.copytree(run.path, directory / "run"))


def no_nan(value) -> bool:
    return "NaN" not in json.dumps(value) and "Infinity" not in json.dumps(value)


@pytest.fixture(scope="module")
def full(small_run, random_lm, tmp_path_factory):
    run = fresh(small_run, tmp_path_factory.mktemp("full"))
    return run, evaluate(run, random_lm, FULL)


def test_the_core_measures_no_more_than_its_one_pass_gives(small_run, random_lm, tmp_path):
    result = evaluate(fresh(small_run, tmp_path), random_lm, n_tokens=20)
    assert result.density.n_tokens == result.reconstruction["n_tokens"] >= 20
    core = {name for name, m in measurements().items() if m.suite == "core"}
    assert set(result.results) == core - {"recovery", "amortisation"}
    assert set(result.values()) == {*measurements(), "skipped", "seconds"}
    assert set(result.skipped) == {"recovery", "amortisation"}
    assert result.skipped["recovery"] == "The text has no ground-truth labels."
    assert "ce_mean" not in result.downstream


def test_every_measurement_is_made_or_skipped_with_a_reason(full):
    _, result = full
    for name in (name for name, m in measurements().items() if m.suite != "tasks"):
        assert (name in result.results) != (name in result.skipped)
        assert (name in result.results) == (name in result.seconds) or name == "absorption"
    assert set(result.skipped) == {"recovery", "probing", "absorption", "amortisation"}
    assert "no ground-truth labels" in result.skipped["absorption"]
    assert no_nan(result.values())


def test_frequencies_sum_to_the_l0_and_agree_with_the_reconstructions(full):
    """P6.3."""
    _, result = full
    assert sum(result.density.frequency) == pytest.approx(result.reconstruction["l0"])
    assert result.density.dead == result.reconstruction["dead"] / result.reconstruction["d_sae"]


def test_every_file_says_how_it_was_made(full):
    run, result = full
    summary = run.evaluation("summary")
    assert summary["skipped"] == result.skipped
    assert summary["made"]["options"]["reach"] == 3
    assert summary["made"]["options"]["n_tokens"] == 200
    assert summary["made"]["provenance"]["versions"]["torch"] == version("torch")
    assert summary["made"]["corpus"]["split"] == "held-out"
    for name in summary["files"]:
        saved = run.evaluation(name)
        made = saved.pop("made", summary["made"])
        assert made == summary["made"]
        assert saved == json.loads(json.dumps(result.values()[name]))
    missing = {"recovery", "probing", "absorption"}
    assert not any((run.path / "evaluation" / f"{name}.json").exists() for name in missing)


def test_a_later_core_leaves_the_costlier_files_as_they_are(full, random_lm, tmp_path):
    run = fresh(full[0], tmp_path)
    evaluate(run, random_lm, n_tokens=30)
    assert run.evaluation("summary")["made"]["options"]["suite"] == "core"
    assert run.evaluation("density")["made"]["options"]["suite"] == "core"
    assert run.evaluation("uniformity")["made"]["options"]["suite"] == "full"


def test_keyword_arguments_replace_those_of_the_options(small_run, random_lm, tmp_path):
    run = fresh(small_run, tmp_path)
    evaluate(run, random_lm, EvaluateOptions(n_tokens=5000, seed=7), n_tokens=20)
    options = run.evaluation("summary")["made"]["options"]
    assert (options["n_tokens"], options["seed"]) == (20, 7)


def test_mean_ablation_writes_the_mean_of_all_counted_rows(full, random_lm):
    run, result = full
    corpus = corpus_of(run, random_lm, "held-out")
    batches = list(stream(Host.of_run(run, random_lm), corpus, n_tokens=200, batch_size=3))
    mean = torch.cat([batch.x for batch in batches]).double().mean(0).float()
    losses = []
    for batch in batches:

        def edit(value, mask=batch.mask):
            return torch.where(mask[..., None], mean, value)

        log_p = random_lm.logits(batch.tokens, {run.config.site: edit}).log_softmax(-1)
        counted = batch.mask[:, :-1] & batch.mask[:, 1:]
        right = log_p[:, :-1].gather(2, batch.tokens[:, 1:, None])[..., 0]
        losses += (-right[counted]).tolist()
    d = result.downstream
    assert d["ce_mean"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    expected = (d["ce_mean"] - d["ce_spliced"]) / (d["ce_mean"] - d["ce_plain"])
    assert d["ce_recovered_mean"] == pytest.approx(expected)


def test_batching_changes_no_figure(full, random_lm, tmp_path):
    run, one = full
    other = evaluate(fresh(run, tmp_path), random_lm, replace_option(FULL, batch_size=20))
    # What is drawn at random is drawn a batch at a time, so only sums compare.
    for name in ("reconstruction", "downstream"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-5)
    assert other.density == one.density
    assert other.description_length.curve == one.description_length.curve


def replace_option(options, **changes):
    return EvaluateOptions.model_validate(options.model_dump() | changes)


def test_a_site_that_cannot_be_spliced_is_measured_without_the_model(
    random_lm, tmp_path, small_store
):
    corpus = load_corpus(str(small_store.manifest.corpus["source"]), random_lm, context_length=8)
    site = "blocks.1.hook_resid_mid"
    options = HarvestOptions(n_tokens=300, dtype="float32")
    store = harvest(random_lm, [site], corpus, out=tmp_path / "store", options=options)
    run = train(small_config(store, site=site, n_tokens=1000), out=tmp_path / "run")
    result = evaluate(run, random_lm, FULL)
    assert result.downstream == {}
    assert {"downstream", "uniformity", "ablation"} <= set(result.skipped)
    assert all("goes past" in result.skipped[name] for name in ("downstream", "ablation"))
    assert 0 < result.reconstruction["fvu"] < 1
    assert result.description_length is not None


VARIANTS = {
    "abs-topk": {"variant": "abs-topk", "d_sae": 32, "k": 4},
    "batch-abs-topk": {"variant": "abs-topk", "selection": "batch", "d_sae": 32, "k": 4},
    "matching-pursuit": {"variant": "matching-pursuit", "d_sae": 32, "k": 4},
    "batch-topk": {"variant": "batch-topk", "d_sae": 32, "k": 4},
    "jumprelu": {"variant": "jumprelu", "d_sae": 32},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_codes_is_measured_in_full(name, small_store, random_lm, tmp_path):
    config = small_config(small_store, sae=VARIANTS[name], n_tokens=1000)
    result = evaluate(train(config, out=tmp_path / name), random_lm, FULL)
    assert result.dictionary.signed == ("abs" in name)
    for measurement in ("description_length", "uniformity", "ablation"):
        assert getattr(result, measurement) is not None, result.skipped
    assert 0 < result.uniformity.r <= 1
    assert sum(result.density.frequency) == pytest.approx(result.reconstruction["l0"])
    assert no_nan(result.values())


def test_turning_latents_around_changes_no_figure_of_signed_codes(small_store, random_lm, tmp_path):
    """The sign flip of (W_enc, b_enc, W_dec), through everything at once."""
    config = small_config(small_store, sae=VARIANTS["abs-topk"], n_tokens=1000)
    run = train(config, out=tmp_path / "run")
    plain = evaluate(run, random_lm, FULL)
    sae = run.load_sae()
    turned = torch.where(torch.arange(32) % 2 == 0, -1.0, 1.0)
    with torch.no_grad():
        sae.W_dec.mul_(turned[:, None])
        for name in ("W_enc", "b_enc"):
            sae.get_parameter(name).mul_(turned)
    run.load_sae = lambda device="cpu": sae
    other = evaluate(run, random_lm, FULL)
    for name in ("reconstruction", "downstream"):
        assert getattr(other, name) == pytest.approx(getattr(plain, name), rel=1e-4)
    assert other.density.frequency == plain.density.frequency
    assert other.dictionary.duplicates == plain.dictionary.duplicates
    assert other.uniformity.r == pytest.approx(plain.uniformity.r, rel=1e-3)
    assert other.ablation.latents.mean == pytest.approx(plain.ablation.latents.mean, rel=1e-3)
    lengths = (plain.description_length.curve, other.description_length.curve)
    for mine, theirs in zip(*lengths, strict=True):
        assert asdict(theirs) == pytest.approx(asdict(mine), rel=1e-4)


@pytest.fixture(scope="module")
def array_run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("arrays")
    x = torch.randn(6000, 8, generator=torch.Generator().manual_seed(0))
    store = write_arrays(directory / "store", {"x": x @ torch.randn(8, 8)}, rows_per_unit=1000)
    config = TrainConfig.model_validate(
        {
            "sae": {"variant": "topk", "d_sae": 16, "k": 3},
            "activations": store,
            "site": "x",
            "n_tokens": 6000,
            "batch_size": 200,
            "lr": 1e-2,
        }
    )
    return train(config, out=directory / "run")


def test_a_run_trained_on_arrays_is_measured_on_rows_held_back(array_run, tmp_path):
    run = fresh(array_run, tmp_path)
    result = evaluate_arrays(run, EvaluateOptions(suite="full"))
    assert 0 < result.reconstruction["fvu"] < 1
    assert result.reconstruction["l0"] == pytest.approx(3, abs=0.05)
    assert result.density.n_tokens == result.reconstruction["n_tokens"] < 6000
    assert result.description_length is not None
    assert set(result.skipped) == {
        *("downstream", "recovery", "uniformity", "probing", "absorption", "ablation"),
        "amortisation",
    }
    assert run.evaluation("summary")["made"]["corpus"] is None
    core = evaluate(run, n_tokens=100)
    assert core.description_length is None
    again = evaluate_arrays(run, EvaluateOptions(n_tokens=100)).reconstruction
    assert core.reconstruction == pytest.approx(again)
    assert core.reconstruction["n_tokens"] == 100


def test_a_run_trained_on_arrays_takes_neither_model_nor_text(array_run, random_lm):
    with pytest.raises(UsageError, match="was trained on arrays, which no model reads; give none"):
        evaluate(array_run, random_lm)


def test_the_model_of_a_run_is_loaded_unless_it_is_given(small_run, random_lm, tmp_path):
    given = evaluate(fresh(small_run, tmp_path / "a"), random_lm, n_tokens=20)
    found = evaluate(fresh(small_run, tmp_path / "b"), n_tokens=20, device="cpu")
    # Without the bridge, so equal up to rounding.
    assert found.reconstruction == pytest.approx(given.reconstruction, rel=1e-4)
    assert found.downstream.keys() == given.downstream.keys()
    assert found.downstream["ce_plain"] == pytest.approx(given.downstream["ce_plain"], rel=1e-4)


def test_a_store_too_small_to_hold_rows_back_says_so(tmp_path):
    x = torch.randn(200, 4)
    store = write_arrays(tmp_path / "store", {"x": x})
    sae = {"variant": "topk", "d_sae": 8, "k": 2}
    config = TrainConfig.model_validate(
        {"sae": sae, "activations": store, "site": "x", "n_tokens": 400, "batch_size": 50}
    )
    result = evaluate_arrays(train(config, out=tmp_path / "run"))
    assert "too small" in result.skipped["held_out"]


def test_an_identity_sae_is_perfect(small_run, random_lm, tmp_path):
    """P5.2, P6.1, P6.4, and what a code of the channels themselves must give."""
    from evaluation.cases import sae_with

    run = fresh(small_run, tmp_path)
    run.load_sae = lambda device="cpu": sae_with(torch.eye(16), signed=True)
    result = evaluate(run, random_lm, FULL)
    assert result.reconstruction["fvu"] < 1e-10
    assert abs(result.downstream["ce_spliced"] - result.downstream["ce_plain"]) < 1e-5
    assert result.downstream["kl"] < 1e-6
    assert result.downstream["ce_recovered_mean"] == pytest.approx(1, abs=1e-4)
    assert result.density.mean_l0 == 16
    assert result.dictionary.encoder_mean == pytest.approx(1)
    # Ablating a latent is then ablating a channel, if all of both are drawn.
    options = replace_option(FULL, n_ablated_latents=16)
    ablation = evaluate(run, random_lm, options).ablation
    assert ablation.latents.mean == pytest.approx(ablation.channels.mean, rel=1e-3)


def test_codes_of_channels_take_the_channels_bits_and_more_for_their_signs():
    """Of a channel that is never 0 the code has the same magnitudes and signs."""
    x = torch.tensor([[0.5], [1.5], [-0.5], [-1.5]])
    codes = SparseCodes(x, torch.zeros(4, 1, dtype=torch.long), 1)
    assert code_bits(codes, 2) == pytest.approx(2)
    assert channel_bits(x, 0.06) == pytest.approx(2)


@pytest.fixture(scope="module")
def grammar(tiny_lm, tmp_path_factory):
    """A short training on the shipped model, whose text has labels."""
    directory = tmp_path_factory.mktemp("grammar")
    site = "blocks.2.hook_resid_post"
    store = harvest(
        tiny_lm,
        [site],
        load_corpus("tiny", tiny_lm),
        out=directory / "store",
        options=HarvestOptions(n_tokens=12_000),
    )
    changes = {"sae": {"variant": "abs-topk", "d_sae": 128, "k": 8}, "lr": 8e-3, "batch_size": 512}
    config = small_config(store, site=site, n_tokens=24_000, **changes)
    run = train(config, out=directory / "run")
    options = EvaluateOptions(
        suite="full", n_tokens=6000, n_uniformity=24, n_ablated_tokens=3, n_sample=6000
    )
    return run, evaluate(run, tiny_lm, options)


@pytest.mark.slow
def test_a_labelled_text_is_probed_and_absorption_is_measured(grammar):
    run, result = grammar
    assert set(result.skipped) == {"amortisation"}  # No other encoder was named.
    of_rows = {name for name, m in measurements().items() if m.suite != "tasks"}
    assert {*result.results, "amortisation"} == of_rows
    probing = result.probing
    assert len(probing.labels) >= 30
    f1 = probing.mean_f1
    # More latents tell more, and everything tells most.
    assert f1["latents"][0] < f1["latents"][2] < f1["dense"][0]
    assert probing.mean_auroc["dense"][0] > 0.95
    kinds = {name.partition(":")[0] for name in result.absorption.left_out}
    # Words of the shipped model are whole tokens: how they are spelt is nowhere in them.
    assert "first letter" in kinds
    assert result.absorption.means["hierarchy"].n_tasks >= 5
    assert set(result.absorption.means) == {"hierarchy"}
    assert no_nan(result.values())
    assert run.evaluation("recovery")["features"][0]["description"]


@pytest.mark.slow
def test_one_context_is_too_little_for_what_needs_two_halves(grammar, tiny_lm, tmp_path):
    options = EvaluateOptions(suite="full", n_tokens=20, batch_size=1, n_sample=20)
    result = evaluate(fresh(grammar[0], tmp_path), tiny_lm, options)
    assert result.recovery.features == []
    assert "in both halves of the 20 rows" in result.skipped["probing"]
    assert "A half of the 20 rows" in result.skipped["absorption"]
    assert result.description_length is not None
    assert no_nan(result.values())


@pytest.mark.slow
def test_signed_codes_pay_for_their_signs_only_where_they_use_both(grammar):
    _, result = grammar
    density = result.density
    used = sum(
        frequency * binary_entropy(share)
        for frequency, share in zip(density.frequency, density.negative, strict=True)
    )
    assert 0 < used < density.mean_l0
    coarse = result.description_length.curve[0]
    silence = sum(binary_entropy(frequency) for frequency in density.frequency)
    # With one value a sign the code is silence and signs alone; other rows, so not exactly.
    assert coarse.bits == pytest.approx(silence + used, rel=0.05)


def binary_entropy(p: float) -> float:
    return 0.0 if p in (0, 1) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_figures(full, checkpoint, tmp_path):
    from saelab.lm.load import load_language_model

    run, expected = full
    lm = load_language_model(str(checkpoint), device="cuda")
    found = evaluate(fresh(run, tmp_path), lm, FULL)
    assert found.reconstruction == pytest.approx(expected.reconstruction, rel=1e-3)
    assert found.density.mean_l0 == pytest.approx(expected.density.mean_l0)
    assert found.dictionary.duplicates == expected.dictionary.duplicates
    assert found.uniformity.r == pytest.approx(expected.uniformity.r, rel=1e-2)
    assert found.ablation.latents.mean == pytest.approx(expected.ablation.latents.mean, rel=1e-2)
    bits = [result.description_length.curve[0].bits for result in (found, expected)]
    assert bits[0] == pytest.approx(bits[1], rel=1e-2)


def test_a_text_without_tokens_is_refused(small_run, random_lm, monkeypatch):
    from saelab.evaluation import inputs as module

    monkeypatch.setattr(module, "stream", lambda *_, **__: iter(()))
    with pytest.raises(UsageError, match="no tokens to evaluate on"):
        evaluate(small_run, random_lm)


def test_figures_of_one_evaluation_are_those_of_another(full, random_lm, tmp_path):
    """Everything drawn at random comes from the seed."""
    run, one = full
    other = evaluate(fresh(run, tmp_path), random_lm, FULL)
    assert replace(other, seconds={}) == replace(one, seconds={})


def test_named_metrics_are_measured_alone_with_what_they_need():
    def names(**options):
        return [m.name for m in asked_for(EvaluateOptions(**options))]

    assert names(metrics=("density",)) == ["density"]
    assert names(metrics=("dictionary",)) == ["density", "dictionary"]
    assert names(metrics=("downstream", "uniformity")) == [
        "reconstruction", "downstream", "uniformity",
    ]  # fmt: skip
    assert "dictionary" in names(suite="core")
    assert "uniformity" not in names(suite="core")
    with pytest.raises(UsageError, match="no metric 'fvu'; there are reconstruction,"):
        names(metrics=("fvu",))

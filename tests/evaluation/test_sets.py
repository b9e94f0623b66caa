"""Sets: what the model says with every part replaced at once, and what is refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import TEXT, small_config

from saelab.activations.corpus import load_corpus
from saelab.activations.harvest import HarvestOptions, harvest
from saelab.cli import main
from saelab.config import UsageError
from saelab.evaluation import sets
from saelab.evaluation.options import EvaluateOptions
from saelab.evaluation.set_results import load_set_evaluation
from saelab.evaluation.sets import evaluate_set
from saelab.host.host import Host
from saelab.host.splice import splice_edits
from saelab.host.text import corpus_of, stream
from saelab.sae.clt import CLT
from saelab.training.sets import RunSet

OPTIONS = EvaluateOptions(n_tokens=20, batch_size=3)
PLACE = "blocks.0.hook_resid_pre"
"""Any site, to read the text of a model without a joint one."""
PARTS = ("attn.hook_z", "mlp.hook_in", "hook_mlp_out")


@pytest.fixture(scope="module")
def store(random_lm, tmp_path_factory):
    """What every attention and MLP of the random checkpoint reads and writes."""
    directory = tmp_path_factory.mktemp("set")
    (directory / "text.txt").write_text(TEXT)
    corpus = load_corpus(str(directory / "text.txt"), random_lm, context_length=8)
    options = HarvestOptions(n_tokens=400, dtype="float32", batch_size=5)
    hooks = [f"blocks.{layer}.{part}" for layer in range(2) for part in PARTS]
    return harvest(random_lm, hooks, corpus, out=directory / "store", options=options)


def sweep(directory, store, **parts):
    """Train the set that a sweep file describes; returns the exit code."""
    base = small_config(store, n_tokens=1000).model_dump(mode="json", exclude={"site"})
    file = directory / "sweep.json"
    file.write_text(json.dumps({"base": base, "recipe": "transcoders+attention", **parts}))
    return main(["train", "sweep", str(file), "--out", str(directory / "whole")])


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    assert sweep(directory, store, runs={"attention": {"sae.k": 3}}) == 0
    return directory / "whole"


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "whole")


@pytest.fixture(scope="module")
def measured(whole, random_lm):
    return evaluate_set(RunSet(whole), random_lm, OPTIONS)


def by_hand(lm, hosts, corpus, filled):
    """Cross-entropy with all parts replaced, context by context, from full logits."""
    total, n = 0.0, 0
    for batch in stream(hosts[0], corpus, n_tokens=20, batch_size=3):
        logits = lm.logits(batch.tokens, filled(batch.tokens)).double().log_softmax(-1)
        for row, tokens, mask in zip(logits, batch.tokens, batch.mask, strict=True):
            for i in range(len(tokens) - 1):
                if mask[i] and mask[i + 1]:
                    total, n = total - float(row[i, tokens[i + 1]]), n + 1
    return total / n, n


def test_all_at_once_is_the_model_whose_parts_are_edited_one_after_the_other(
    whole, measured, random_lm
):
    runs = RunSet(whole).runs
    hosts = [Host.of_run(run, random_lm) for run in runs]
    corpus = corpus_of(runs[0], random_lm, "held-out")

    def filled(tokens):
        read, edits = {}, {}
        for host in hosts:

            def look(value, host=host):
                read[host.name] = value
                return value

            def write(value, host=host):
                x = read[host.name] if host.is_transcoder else value
                sae, special = host.sae, torch.tensor(host.domain.special_token_ids)
                dense = sae.encode(x.flatten(0, 1)).dense() @ sae.W_dec + sae.b_dec
                return torch.where(
                    torch.isin(tokens, special)[..., None], value, dense.view_as(value)
                )

            edits |= {host.reads: look, host.writes: write}
        return edits

    ce, n = by_hand(random_lm, hosts, corpus, filled)
    found = measured.at_once[0]
    assert (found.what, found.n_runs, measured.n_tokens) == ("all", 4, n)
    assert found.ce == pytest.approx(ce, rel=1e-6)
    plain, _ = by_hand(random_lm, hosts, corpus, lambda _: {})
    assert measured.ce_plain == pytest.approx(plain, rel=1e-6)
    assert found.ce != pytest.approx(plain, rel=1e-4)


def test_each_run_alone_and_each_part_stand_beside_all(measured):
    assert [m.name for m in measured.members] == ["attention-0", "mlp-0", "attention-1", "mlp-1"]
    assert [one.what for one in measured.at_once] == ["all", "attention", "mlp"]
    for one in measured.at_once:
        scale = one.ce_mean - measured.ce_plain
        assert one.recovered == pytest.approx((one.ce_mean - one.ce) / scale)
        assert one.left_alone == 0
    assert all(member.ce_added is not None for member in measured.members)


def test_perfect_reconstructions_change_nothing(whole, random_lm):
    runs = RunSet(whole).runs
    hosts = [Host.of_run(run, random_lm) for run in runs if "attention" in run.name]
    tokens = torch.arange(2, 10).view(1, 8) % random_lm.info.d_vocab
    edits = splice_edits(hosts, tokens, lambda _, x: x)
    assert torch.equal(random_lm.logits(tokens, edits), random_lm.logits(tokens))
    nowhere = [replace(host, domain=replace(host.domain, first_position=8)) for host in hosts]
    edits = splice_edits(nowhere, tokens, lambda _, x: 0 * x)
    assert torch.equal(random_lm.logits(tokens, edits), random_lm.logits(tokens))


def test_the_same_command_measures_no_run_again(whole, measured, random_lm, monkeypatch):
    monkeypatch.setattr(sets, "evaluate", None)
    assert evaluate_set(RunSet(whole), random_lm, OPTIONS) == measured
    assert load_set_evaluation(whole) == measured
    with pytest.raises(TypeError, match="not callable"):
        evaluate_set(RunSet(whole), random_lm, OPTIONS.model_copy(update={"n_tokens": 21}))


def test_verbs_take_a_set_as_one_thing(copied, measured, capsys):
    assert main(["evaluate", str(copied), "--n-tokens", "20", "--batch-size", "3"]) == 0
    told = capsys.readouterr().out
    assert f"{measured.at_once[0].ce:.4f}" in told
    assert "mlp-1" in told
    assert (copied / "evaluation.html").is_file()
    assert main(["features", str(copied), "--n-tokens", "100"]) == 0
    assert "attention-1: 32 latents" in capsys.readouterr().out
    written = (copied / "mlp-0" / "features.h5").stat().st_mtime_ns
    assert main(["features", str(copied), "--n-tokens", "100"]) == 0
    assert (copied / "mlp-0" / "features.h5").stat().st_mtime_ns == written
    words = ["--prompt", "the big cat sat", "--n-members", "0", "--json"]
    assert main(["circuit", str(copied), *words]) == 0
    saes = json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))["facts"]["saes"]
    assert len(saes) == 4
    assert main(["verify", str(copied)]) == 0
    assert main(["show", str(copied), "--json"]) == 0
    assert main(["show", str(copied)]) == 0


def test_a_recipe_that_makes_no_set_is_refused_before_a_run_is_trained(store, tmp_path, capsys):
    told = {
        "there is no recipe clts; there is transcoders": {"recipe": "clts"},
        "transcoders has no run heads; it has mlp": {
            "recipe": "transcoders", "runs": {"heads": {}}},
        "without layers: a set has all": {"runs": {"mlp": {"layers": [0]}}},
        "write * for the layer in its sites": {
            "runs": {"mlp": {"site": "blocks.0.mlp.hook_in"}}},
        "one SAE per place": {"grid": {"seed": [0, 1]}},
        "writes blocks.0.attn.hook_z: a set takes": {
            "runs": {"mlp": {"target_site": "blocks.*.attn.hook_z"}}},
    }  # fmt: skip
    for sentence, parts in told.items():
        assert sweep(tmp_path, store, **parts) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "whole").exists()


@pytest.fixture(scope="module")
def across(store, tmp_path_factory):
    """A cross-layer transcoder of both MLPs of the random checkpoint."""
    directory = tmp_path_factory.mktemp("across")
    sae = {"d_sae": 32, "k": 8, "variant": "clt"}
    base = small_config(store, n_tokens=1000).model_dump(mode="json", exclude={"site", "sae"})
    assert sweep(directory, store, recipe="clt", base=base | {"sae": sae}) == 0
    return directory / "whole"


def test_a_cross_layer_transcoder_replaces_all_mlps_from_what_the_changed_model_computes(
    across, random_lm
):
    runs = RunSet(across)
    (run,) = runs.runs
    found = evaluate_set(runs, random_lm, OPTIONS)
    host = Host.of_run(run, random_lm)
    assert isinstance(host.sae, CLT)
    assert host.sae.widths == (16, 16)
    sae, special = host.sae, torch.tensor(host.domain.special_token_ids)
    plain = replace(host, lm=random_lm, reads=PLACE, writes=PLACE)

    def filled(tokens):
        read, edits = [], {}
        for layer in range(2):

            def look(value, layer=layer):
                read[layer:] = [value * host.domain.parts[layer].factor]
                return value

            def write(value, layer=layer):
                x = torch.cat([*read, *[torch.zeros_like(read[0])] * (1 - layer)], -1)
                a = sae.pre_activations(x.flatten(0, 1))
                dense = torch.where(a > sae.threshold.clamp_min(0), a, 0.0)
                made = dense @ sae.W_dec[:, 16 * layer : 16 * layer + 16]
                made = made + sae.b_dec[16 * layer : 16 * layer + 16]
                made = made / host.domain.target_parts[layer].factor
                where = torch.isin(tokens, special)[..., None]
                return torch.where(where, value, made.view_as(value))

            edits |= {f"blocks.{layer}.mlp.hook_in": look}
            edits |= {f"blocks.{layer}.hook_mlp_out": write}
        return edits

    ce, n = by_hand(random_lm, [plain], corpus_of(run, random_lm, "held-out"), filled)
    assert found.n_tokens == n
    assert found.at_once[0].ce == pytest.approx(ce, rel=1e-5)
    assert found.members[0].n_layers == 2


def test_what_is_missing_or_does_not_fit_is_one_sentence(copied, tmp_path, capsys):
    assert main(["explain", str(copied), "--llm", "tokens"]) == 2
    assert "is a set of runs; name one of them" in capsys.readouterr().err
    shutil.rmtree(copied / "mlp-1")
    for verb in (["evaluate"], ["features"], ["circuit", "--prompt", "the"]):
        assert main([verb[0], str(copied), *verb[1:]]) == 2
        assert "lacks its run mlp-1, of the mlp of layer 1" in capsys.readouterr().err
    assert main(["show", str(copied)]) == 0
    assert "blocks.1.hook_mlp_out, missing" in capsys.readouterr().out
    assert main(["verify", str(copied)]) == 1
    assert "set.json: The set" in capsys.readouterr().out
    (copied / "evaluation.json").write_text("{}")
    assert main(["verify", str(copied)]) == 1
    assert "evaluation.json" in capsys.readouterr().out


def test_an_encoder_and_texts_that_differ_are_refused(copied, random_lm):
    with pytest.raises(UsageError, match="--encoder omp is for one SAE"):
        evaluate_set(RunSet(copied), random_lm, OPTIONS.model_copy(update={"encoder": "omp"}))
    path = copied / "mlp-0" / "provenance.json"
    values = json.loads(path.read_text())
    values["corpus"]["source"] = "other"
    del values["sha256"]
    path.write_text(json.dumps(values))
    with pytest.raises(UsageError, match=r"mlp-0 was trained on another text.*--text"):
        evaluate_set(RunSet(copied), random_lm, OPTIONS)

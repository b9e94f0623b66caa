"""A transcoder as a user meets it, from `saelab train` to `saelab circuit`."""

import json

import pytest
import torch

from saelab.cli import main
from saelab.training.run import Run

READS, WRITES = "blocks.1.ln2.hook_out", "blocks.1.hook_mlp_out"
PROMPT = "the big cat sat on a red"


@pytest.fixture(scope="module")
def arguments(mlp_store):
    sites = ("--site", READS, "--target-site", WRITES, "--n-tokens", 2000, "--batch-size", 100)
    return ("--activations", mlp_store.path, *sites, "--lr", 0.01, "--d-sae", 32, "--k", 4)


@pytest.fixture(scope="module")
def trained(arguments, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "mlp"
    assert saelab("train", "topk", *arguments, "--skip", "--out", out) == 0
    return Run(out)


def saelab(*arguments: object) -> int:
    return main([str(part) for part in arguments])


def test_the_weights_hold_what_was_asked_for(trained):
    sae = trained.load_sae()
    assert sae.is_transcoder
    assert sae.W_skip is not None
    assert trained.metrics()[-1]["fvu"] < 0.9


def test_show_says_what_it_reads_and_writes(trained, capsys):
    assert saelab("show", trained.path, "--json") == 0
    config = json.loads(capsys.readouterr().out)["config"]
    assert (config["site"], config["target_site"], config["skip"]) == (READS, WRITES, True)


def test_evaluate_splices_it_in(trained, capsys):
    assert saelab("evaluate", trained.path, "--n-tokens", 40, "--suite", "core", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reconstruction"]["fvu"] < 1
    assert found["downstream"]["ce_spliced"] != found["downstream"]["ce_plain"]


def test_features_and_steering_follow(trained, capsys):
    assert saelab("features", trained.path, "--n-tokens", 100) == 0
    assert saelab("steer", trained.path, "--all", "--prompt", "the big cat") == 0
    assert str(trained.path) in capsys.readouterr().out


def test_a_circuit_goes_through_it(trained, capsys):
    assert saelab("circuit", trained.path, "--prompt", PROMPT, "--json", "--top", 100) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["facts"]["saes"]) == ["mlp"]
    names = {entry["node"].split()[0] for entry in found["nodes"]}
    assert "mlp" in names


def test_an_sae_of_the_same_mlps_output_has_another_place(trained, mlp_store, tmp_path, capsys):
    out = tmp_path / "sae"
    options = ("--n-tokens", 200, "--batch-size", 100, "--d-sae", 32, "--k", 4, "--out", out)
    assert saelab("train", "topk", "--activations", mlp_store.path, "--site", WRITES, *options) == 0
    assert saelab("circuit", trained.path, out, "--prompt", PROMPT) == 2
    assert "circuits take SAEs at attn.hook_z" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("k-sparse", (), "A k-sparse SAE cannot have another --target-site than its --site"),
        ("matching-pursuit", (), "A matching-pursuit SAE cannot have another --target-site"),
        ("topk", ("--objective", "e2e"), "a transcoder trains with --objective local"),
        ("topk", ("--target-site", "blocks.0.hook_mlp_out"), "harvest both sites into one store"),
        ("topk", ("--target-site", READS), "leave it out, or name another site"),
    ],
)
def test_bad_input_is_one_sentence(arguments, tmp_path, capsys, variant, changes, message):
    out = tmp_path / "run"
    assert saelab("train", variant, *arguments, *changes, "--out", out) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_it_is_not_exported_where_the_other_tool_has_no_such_transcoder(trained, tmp_path, capsys):
    assert saelab("export", trained.path, "--out", tmp_path / "lens") == 2
    assert "SAELens has no transcoder that selects its latents by k" in capsys.readouterr().err
    assert not (tmp_path / "lens").exists()


def test_one_that_sae_lens_knows_goes_there_and_comes_back(arguments, mlp_store, tmp_path, capsys):
    kept, lens, back = (tmp_path / name for name in ("kept", "lens", "back"))
    assert saelab("train", "batch-topk", *arguments, "--skip", "--out", kept) == 0
    assert saelab("export", kept, "--out", lens) == 0
    metadata = json.loads((lens / "cfg.json").read_text())["metadata"]
    assert (metadata["hook_name"], metadata["hook_name_out"]) == (READS, WRITES)
    store = ("--activations", mlp_store.path)
    assert saelab("import", lens, *store, "--target-site", READS, "--out", back) == 2
    assert f"reconstructs {WRITES}, not {READS}" in capsys.readouterr().err
    assert saelab("import", lens, *store, "--out", back) == 0
    mine, theirs = (Run(path) for path in (kept, back))
    assert (theirs.config.site, theirs.config.target_site) == (READS, WRITES)
    x = torch.randn(50, mine.load_sae().d_in, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        theirs.load_sae().reconstruct(x), mine.load_sae().reconstruct(x), atol=1e-4, rtol=1e-4
    )
    assert saelab("circuit", back, "--prompt", PROMPT) == 0

"""SAEs by name, on a folder with the release's files; and whether one fits its site."""

import json
import re

import pytest
import torch
from cli.test_train_cli import SITE, run
from conftest import TEXT
from safetensors.torch import load_file

from saelab.analysis.records import Features
from saelab.sae.interop.convert import from_foreign, to_foreign
from saelab.sae.interop.foreign import ForeignSAE
from saelab.training.adopt import adopt
from saelab.training.run import Run

NAME = "gpt2-small/res-jb/3"


@pytest.fixture
def released(small_run, tmp_path):
    """A folder with the files of a release by name, of the small run's SAE."""
    path = tmp_path / "blocks.3.hook_resid_pre"
    assert run("export", small_run.path, "--out", path) == 0
    cfg = json.loads((path / "cfg.json").read_text())
    cfg["metadata"]["hook_name"] = None
    (path / "cfg.json").write_text(json.dumps(cfg))
    return tmp_path


def test_a_release_is_imported_from_a_folder_and_says_what_to_know(
    released, small_store, small_run, tmp_path, capsys
):
    back = tmp_path / "back"
    start = ["--from", released, "--activations", small_store.path, "--out", back]
    assert run("import", NAME, *start) == 2
    capsys.readouterr()
    known = run("import", NAME, *start, "--site", SITE)
    assert known == 2
    assert f"reads blocks.3.hook_resid_pre, not {SITE}" in capsys.readouterr().err
    assert not back.exists()
    source = f"hf:any/one/{(released / 'blocks.3.hook_resid_pre').name}"
    assert run("import", source, *start, "--site", SITE) == 0
    assert run("import", source, *start, "--site", SITE) == 0
    assert "any/one" in Run(back).provenance()["imported_from"]
    x = torch.randn(5, 16)
    expected = small_run.load_sae().reconstruct(x)
    torch.testing.assert_close(Run(back).load_sae().reconstruct(x), expected)
    assert run("import", NAME, *start, "--revision", "x") == 2


def test_releases_are_listed_by_words(capsys):
    assert run("import", "list", "gemma", "transcoder") == 0
    out = capsys.readouterr().out
    assert "gemma-scope-2/{model}/{kind}/{layer}/{width}/{l0}" in out
    assert "goodfire" not in out
    assert run("import", "list", "nothing-like-it") == 2


def openai(path, small_run):
    """A file in OpenAI's layout, whose rows are layer-normed."""
    sae = to_foreign(small_run.load_sae())
    stored = {"pre_bias": sae.b_dec, "latent_bias": sae.b_enc}
    stored |= {"encoder.weight": sae.W_enc.T.clone(), "decoder.weight": sae.W_dec.T.clone()}
    rule = {"activation": "TopK", "activation_state_dict": {"k": 4, "postact_fn": "ReLU"}}
    torch.save(stored | rule, path)
    return path


def test_every_verb_feeds_an_sae_of_normalised_rows_right(small_run, small_store, tmp_path, capsys):
    out = tmp_path / "run"
    file = openai(tmp_path / "8.pt", small_run)
    start = ["--activations", small_store.path, "--site", SITE, "--out", out]
    assert run("import", file, *start) == 0
    assert "Rows are normalised (layer-norm)" in capsys.readouterr().out
    assert run("show", out, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["weights"]["row_norm"] == "layer-norm"
    assert shown["imported"]["notes"][0].startswith("Rows are normalised (layer-norm)")
    loaded = Run(out).load_sae()
    assert loaded.row_norm == "layer-norm"
    x = torch.randn(5, 16) + 1
    mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    plain = small_run.load_sae().reconstruct((x - mean) / (std + 1e-5))
    torch.testing.assert_close(loaded.reconstruct(x), plain * std + mean, rtol=1e-4, atol=1e-4)
    assert (
        run("evaluate", out, "--n-tokens", 50, "--device", "cpu", "--json", "--suite", "core") == 0
    )
    assert run("export", out, "--to", "dictionary-learning", "--out", tmp_path / "dl") == 2
    assert "no SAEs of normalised rows" in capsys.readouterr().err


def test_an_sae_of_another_site_is_found_out(small_run, small_store, tmp_path, capsys):
    out = tmp_path / "far"
    sae = to_foreign(small_run.load_sae())
    elsewhere = ForeignSAE(
        W_enc=sae.W_enc, W_dec=-3 * sae.W_dec, b_enc=sae.b_enc, b_dec=sae.b_dec, k=4,
        subtract_b_dec=True, source="a test",
    )  # fmt: skip

    told = {"imported_from": "a test", "stated": {"l0": [4, 4], "fvu": [0.1, 0.2]}}
    adopt(from_foreign(elsewhere), activations=small_store.path, site=SITE, out=out, origin=told)
    assert run("check", out, "--n-tokens", 50, "--device", "cpu") == 1
    assert "site, layer or BOS handling is probably wrong" in capsys.readouterr().out
    assert not (out / "evaluation").exists()
    assert run("check", out, "--n-tokens", 50, "--device", "cpu", "--json") == 1
    fits = {fit["name"]: fit for fit in json.loads(capsys.readouterr().out)["fits"]}
    assert fits["l0"]["problem"] is None
    assert fits["fvu"]["stated"] == [0.1, 0.2]


def test_weights_stay_in_sixteen_bits_from_import_to_export(
    small_run, small_store, tmp_path, capsys
):
    source, out, back = (tmp_path / name for name in ("layers.0", "run", "back"))
    assert run("export", small_run.path, "--to", "sparsify", "--out", source) == 0
    start = ["--activations", small_store.path, "--site", SITE, "--dtype", "bfloat16"]
    assert run("import", source, *start, "--out", out) == 0
    capsys.readouterr()
    assert run("show", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["weights"]["W_dec"] == "bfloat16 32 x 16"
    assert run("evaluate", out, "--metrics", "reconstruction", "dictionary", "uniformity",
               "--n-tokens", 50, "--n-uniformity", 2, "--device", "cpu") == 0  # fmt: skip
    assert run("features", out, "--latents", 1, 3, "--n-tokens", 100, "--device", "cpu") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("latent 1: ") for line in lines)
    examples = [line.split(maxsplit=1)[1] for line in lines if "[" in line]
    assert examples
    for example in examples:
        assert re.sub(r"^<bos> |[][]", "", example) in TEXT
    # What was chosen before stays: a list may name both.
    assert run("features", out, "--latents", 4, "--n-tokens", 100, "--device", "cpu") == 0
    said = capsys.readouterr()
    assert "2 other latents" in said.err
    assert "latent 1: " not in said.out
    assert Features.of(out).latents == (1, 3, 4)
    assert run("export", out, "--out", back) == 0
    assert load_file(back / "sae_weights.safetensors")["W_dec"].dtype == torch.bfloat16

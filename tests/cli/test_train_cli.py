"""Training, sweeps, and SAEs that come from and go to other tools, by the command line."""

import json

import pytest
import torch
from conftest import small_config
from rest import rest

from saelab.cli import main
from saelab.sae.interop.convert import load_foreign_sae
from saelab.sae.variants import BUILT_IN, sized, variants
from saelab.training.run import Run

SITE = "blocks.0.hook_resid_post"


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def options(store, variant="topk"):
    config = small_config(store, n_tokens=300, sae=sized(variant, 48, 4).model_dump())
    names = ("site", "n_tokens", "batch_size", "lr", "activations")
    given = {name: getattr(config, name) for name in names}
    pairs = [(f"--{n.replace('_', '-')}", v) for n, v in given.items() if v is not None]
    return [part for pair in pairs for part in pair]


@pytest.mark.parametrize("variant", BUILT_IN)
def test_every_variant_is_a_subcommand_whose_help_explains_each_option(variant, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("train", variant, "--help")
    help_text = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    assert "arXiv" in help_text
    for name, field in variants()[variant].model_fields.items():
        if name != "variant":
            assert f"--{name.replace('_', '-')}" in help_text or f"--no-{name}" in help_text
            assert field.description, name


@pytest.mark.parametrize("variant", BUILT_IN)
def test_every_variant_trains_from_the_command_line(variant, small_store, tmp_path, capsys):
    out = tmp_path / variant
    arguments = [*options(small_store, variant), "--d-sae", 48, "--out", out, "--device", "cpu"]
    if "k" in variants()[variant].model_fields:
        arguments += ["--k", 4]
    assert run("train", variant, *arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    sae = Run(out).load_sae()
    assert sae.config.variant == variant
    assert len(sae.encode(torch.randn(3, 16))) == 3


def test_a_sweep_trains_every_run_and_continues_what_is_missing(small_store, tmp_path, capsys):
    base = json.loads(small_config(small_store, n_tokens=300).model_dump_json())
    file = tmp_path / "sweep.json"
    file.write_text(json.dumps({"base": base, "grid": {"sae.k": [2, 4]}}))
    arguments = ("train", "sweep", file, "--out", tmp_path / "runs", "--device", "cpu")
    assert run(*arguments) == 0
    out = capsys.readouterr().out
    assert "k2 " in out
    assert "k4 " in out
    assert out.splitlines()[-1] == str(tmp_path / "runs")
    saes = [Run(tmp_path / "runs" / name).options["sae"] for name in ("k2", "k4")]
    assert [sae["k"] for sae in saes] == [2, 4]
    assert run(*arguments) == 0


def test_training_nothing_is_refused(small_store, tmp_path, capsys):
    arguments = ["--d-sae", 48, "--out", tmp_path / "run", *options(small_store)]
    assert run("train", "topk", *arguments, "--n-tokens", 0) == 2
    assert "n_tokens=0 trains nothing" in capsys.readouterr().err


def test_an_sae_goes_out_and_comes_back_as_a_run(small_run, small_store, tmp_path, capsys):
    lens, back = tmp_path / "lens", tmp_path / "back"
    assert run("export", small_run.path, "--out", lens) == 0
    assert run("import", lens, "--activations", small_store.path, "--out", back) == 0
    assert "SAELens" in capsys.readouterr().out
    x = torch.randn(5, 16)
    expected = small_run.load_sae().reconstruct(x)
    torch.testing.assert_close(Run(back).load_sae().reconstruct(x), expected)
    torch.testing.assert_close(load_foreign_sae(lens).reconstruct(x), expected)
    assert run("show", back) == 0
    assert Run(back).provenance()["imported_from"].endswith(str(lens))
    assert run("evaluate", back, "--n-tokens", 50, "--device", "cpu", "--json") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--site", "blocks.1.attn.hook_z"], "says that its SAE reads blocks.0.hook_resid_post"),
        (["--out", "."], "is not empty"),
    ],
)
def test_an_import_that_does_not_fit_is_refused(
    small_run, small_store, tmp_path, capsys, arguments, message
):
    run("export", small_run.path, "--out", tmp_path / "lens")
    start = ["--activations", small_store.path, "--out", tmp_path / "new"]
    assert run("import", tmp_path / "lens", *start, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_file_of_no_known_tool_is_refused_with_what_is_known(tmp_path, small_store, capsys):
    (tmp_path / "mine").mkdir()
    start = ["--activations", small_store.path, "--out", tmp_path / "new", "--site", SITE]
    assert run("import", tmp_path / "mine", *start) == 2
    message = capsys.readouterr().err
    assert "SAELens" in message
    assert "Gemma Scope" in message


@pytest.mark.parametrize("backend", ["hugging-face", *rest("transformer-lens")])
def test_a_model_run_in_bfloat16_is_run_so_again_by_what_follows(
    checkpoint, text_file, tmp_path, capsys, backend
):
    store, out = tmp_path / "store", tmp_path / "run"
    harvest = ["--model", checkpoint, "--text", text_file, "--sites", SITE, "--n-tokens", 300]
    harvest += ["--context-length", 8, "--compute-dtype", "bf16", "--backend", backend]
    assert run("harvest", *harvest, "--out", store, "--device", "cpu") == 0
    sae = ["--d-sae", 48, "--k", 4, "--n-tokens", 300, "--batch-size", 40, "--objective", "e2e"]
    where = ["--activations", store, "--site", SITE, "--out", out, "--device", "cpu"]
    assert run("train", "topk", *sae, *where) == 0
    assert Run(out).model()["dtype"] == "bfloat16"
    assert run("evaluate", out, "--n-tokens", 50, "--device", "cpu") == 0
    assert run("verify", store, "--reforward", 5, "--device", "cpu") == 0


def test_a_run_is_kept_on_the_way_made_longer_and_started_from(small_store, tmp_path, capsys):
    given = options(small_store)
    topk = ("--d-sae", 16, "--k", 2)
    out = tmp_path / "run"
    assert run("train", "topk", *given, *topk, "--keep-at", 100, 200, "--out", out) == 0
    assert {path.name for path in (out / "kept").iterdir()} == {
        "tokens_000000000100",
        "tokens_000000000200",
    }
    longer = [500 if part == 300 else part for part in given]
    assert run("train", "topk", *longer, *topk, "--keep-every", 250, "--out", out) == 0
    assert [Run(path).finished for path in sorted((out / "kept").iterdir())] == [True] * 4
    told = capsys.readouterr().err
    assert f"What {out} was after 300 tokens is now {out / 'kept' / 'tokens_000000000300'}." in told
    assert run("train", "topk", *given, *topk, "--out", out) == 2
    assert "holds a run of 500 tokens, more than n_tokens=300" in capsys.readouterr().err
    start = ("--init-from", out / "kept" / "tokens_000000000100")
    tuned = ("--no-keep-state", "--out", tmp_path / "tuned")
    assert run("train", "jumprelu", *given, *topk, *start, *tuned) == 0
    assert not (tmp_path / "tuned" / "checkpoints").exists()
    assert Run(tmp_path / "tuned").provenance()["init_from"]["n_tokens"] == 100
    other = ("train", "topk", *given, "--d-sae", 8, "--k", 2, *start, "--out", tmp_path / "other")
    assert run(*other) == 2
    assert "has 16 latents, and 8 are asked" in capsys.readouterr().err

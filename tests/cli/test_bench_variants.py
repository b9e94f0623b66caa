"""`saelab bench variants` on a random model: every variant, its figures, and what it keeps."""

import json
import subprocess
import sys

import pytest

from saelab.bench.variants import averages
from saelab.cli import main
from saelab.sae.variants import BUILT_IN

SITE = "blocks.0.hook_resid_post"


@pytest.fixture
def bench(small_store, tmp_path, capsys):
    """Runs the command on the small store; the exit code and what it printed."""

    def run(*more: str, out: str = "out"):
        arguments = ["bench", "variants", "--activations", small_store.path, "--site", SITE]
        arguments += ["--d-sae", 32, "--k", 4, "--n-tokens", 400, "--batch-size", 50]
        arguments += ["--n-eval-tokens", 30, "--out", tmp_path / out, "--device", "cpu", *more]
        code = main([str(argument) for argument in arguments])
        return code, capsys.readouterr()

    return run


def test_every_variant_is_trained_measured_and_timed_and_the_table_says_so(bench, tmp_path):
    code, printed = bench("--json", tmp_path / "same.json")
    assert code == 0
    values = json.loads((tmp_path / "same.json").read_text())
    assert values == json.loads((tmp_path / "out" / "variants.json").read_text())
    assert [row["variant"] for row in values["variants"]] == list(BUILT_IN)
    for row in values["variants"]:
        assert row["fvu"] > 0
        assert row["tokens_per_second"] > 0
        assert row["found"] is None  # This text has no labels.
    exact = {row["variant"]: row["l0"] for row in values["variants"]}
    assert exact["topk"] <= 4
    assert exact["k-sparse"] == 4

    # The same command again trains nothing: the figures are those of the same SAEs.
    before = (tmp_path / "out" / "topk-0" / "weights.safetensors").stat().st_mtime_ns
    code, printed = bench()
    assert code == 0
    assert (tmp_path / "out" / "topk-0" / "weights.safetensors").stat().st_mtime_ns == before
    lines = printed.out.splitlines()
    assert lines[-1] == str(tmp_path / "out" / "variants.json")
    shown = {line.split()[0]: line.split() for line in lines[3 : 3 + len(BUILT_IN)]}
    for row in values["variants"]:
        assert shown[row["variant"]][1:3] == [f"{row['fvu']:.4f}", f"{row['l0']:.2f}"]


def test_the_table_shows_the_mean_over_seeds(bench, tmp_path):
    code, printed = bench("--variants", "topk", "--seeds", "2", out="seeds")
    assert code == 0
    file = tmp_path / "seeds" / "variants.json"
    first, second = json.loads(file.read_text())["variants"]
    assert (first["seed"], second["seed"]) == (0, 1)
    assert first["fvu"] != second["fvu"]
    assert f"{(first['fvu'] + second['fvu']) / 2:.4f}" in printed.out


def test_an_unknown_variant_is_one_sentence_and_nothing_is_trained(bench, tmp_path):
    code, printed = bench("--variants", "topkk", out="bad")
    assert code == 2
    assert "There is no variant 'topkk'; choose from topk" in printed.err
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("what", ["store", "variants"])
def test_the_help_of_each_measurement_teaches_without_importing_torch(what):
    code = (
        "import sys, saelab.cli as c\n"
        f"try: c.main(['bench', '{what}', '--help'])\n"
        "except SystemExit as e: print(e.code, 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"saelab bench {what}" in out.stdout
    assert out.stdout.strip().endswith("0 False")


def test_averages_are_per_variant_and_leave_out_what_is_not_known():
    from saelab.bench.variants import VariantFigures

    rows = [
        VariantFigures("a", seed, 0.1 * seed, 4.0, 0.9, 0.1, None, None, seed, 100.0)
        for seed in (1, 3)
    ]
    means = averages([*rows, VariantFigures("b", 0, 0.5, 8.0, 1.0, 0.0, 3, 52, 0, 10.0)])
    assert means["a"]["fvu"] == pytest.approx(0.2)
    assert means["a"]["dead"] == 2
    assert "found" not in means["a"]
    assert means["b"]["found"] == 3

"""The scripts of `examples/` run, on a model of two layers, and are short enough to be read."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from saelab.sae.interop.convert import save_sae_lens
from saelab.training.find import find_runs

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
SITE = "blocks.0.hook_resid_post"


def example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_there_are_five_of_at_most_forty_lines():
    assert len(SCRIPTS) == 5
    assert all(len(path.read_text().splitlines()) <= 40 for path in SCRIPTS)


def test_own_model(checkpoint, text_file, tmp_path, capsys):
    run = example("own_model")(
        str(checkpoint), str(text_file), SITE, str(tmp_path / "mine"), n_tokens=400, d_sae=32, k=4
    )
    out = capsys.readouterr().out
    assert out.startswith("FVU ")
    assert "fires on" in out
    assert run.finished


def test_own_arrays(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "rows.npy", rng.standard_normal((1000, 16), dtype=np.float32))
    run = example("own_arrays")(tmp_path / "rows.npy", tmp_path / "mine", 4000, 32, 4)
    assert run.on_arrays
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_import_and_steer(small_run, checkpoint, text_file, tmp_path, capsys):
    save_sae_lens(small_run.load_sae(), tmp_path / "theirs")
    words = [str(tmp_path / "theirs"), str(checkpoint), str(text_file), SITE]
    run = example("import_and_steer")(*words, str(tmp_path / "out"), "the cat", "3", n_tokens=300)
    assert run.provenance()["imported_from"] == str(tmp_path / "theirs")
    lines = capsys.readouterr().out.splitlines()
    assert sum("steered:" in line for line in lines) == 3


def test_circuit(small_run, tmp_path, capsys):
    found = example("circuit")("the cat sat on a", tmp_path / "graph.html", str(small_run.path))
    assert (tmp_path / "graph.html").stat().st_size > 1000
    out = capsys.readouterr().out
    assert "faithfulness" in out
    assert " at position " in out
    assert found.graph.facts["target"] in out


@pytest.mark.slow
def test_sweep(checkpoint, text_file, tmp_path):
    text_file.write_text(4 * f"{text_file.read_text()} ")
    sweep = example("sweep_gpus")
    assert sweep(str(checkpoint), str(text_file), str(tmp_path / "s"), 2000, 32, 4, 200) == 0
    assert len(find_runs(tmp_path / "s" / "runs").runs) == 4

"""No verb waits for what it does not need: transformers and transformer_lens take seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from saelab.activations.arrays import write_arrays
from saelab.activations.store import ActivationStore
from saelab.cli import VERBS

ROOT = Path(__file__).parents[2]
SCRIPT = """
import contextlib, io, json, sys
from saelab.cli import main

found = []
for arguments in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = ended.code or 0
    heavy = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
    found.append([" ".join(arguments[:2]), code, heavy, out.getvalue()[-300:]])
print(json.dumps(found))
"""
MODELS = ("transformers", "transformer_lens", "tokenizers", "datasets")


def imported(commands, names):
    """What each command, run one after the other in one process, has imported of `names`."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "apps")))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands), json.dumps(names)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1500:]
    return json.loads(done.stdout)


def test_help_needs_no_torch():
    commands = [[], ["--version"], *([verb, "--help"] for verb in VERBS)]
    commands += [["train", "topk", "--help"], ["bench", "variants", "--help"], ["completion"]]
    for command, code, heavy, said in imported(commands, [*MODELS, "torch", "numpy", "h5py"]):
        assert (command, code, heavy) == (command, 0, []), said


def test_a_mistake_needs_no_torch():
    mistakes = [
        ["train", "tpok"],
        ["train", "topk", "--d-sea", "3"],
        ["evaluate", "--suite", "all"],
    ]
    for command, code, heavy, said in imported(mistakes, [*MODELS, "torch", "numpy", "h5py"]):
        assert (command, code, heavy) == (command, 2, []), said


def test_a_misspelt_verb_needs_nothing():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "saelab.cli", "trian"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "did you mean train?" in done.stderr
    assert not any(f"| {name}" in done.stderr for name in ("torch", "numpy", "rich"))


def test_showing_a_store_needs_no_torch(small_store, tmp_path):
    rows = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
    rows[:9] *= 500
    write_arrays(tmp_path / "massive", {"x": rows})
    commands = [["show", str(small_store.path)], ["show", str(tmp_path / "massive")]]
    for command, code, heavy, said in imported(commands, [*MODELS, "torch"]):
        assert (command, code, heavy) == (command, 0, []), said
    assert ActivationStore(tmp_path / "massive").outliers("x").max_norm is not None


def test_verbs_that_run_no_model_import_none(small_store, tmp_path):
    arrays = tmp_path / "arrays"
    write = f"""
import numpy as np
from saelab.activations.arrays import write_arrays
write_arrays({str(arrays)!r}, {{"x": np.random.default_rng(0).normal(size=(3000, 8))}})
"""
    subprocess.run(
        [sys.executable, "-c", write], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True
    )
    store = str(small_store.path)
    short = ["--d-sae", "16", "--k", "2", "--n-tokens", "1000", "--batch-size", "100"]

    def train(path, site, out):
        named = ["--activations", path, "--site", site, "--out", str(tmp_path / out)]
        return ["train", "topk", *named, *short, "--device", "cpu"]

    run, own = str(tmp_path / "run"), str(tmp_path / "own")
    exported, back = str(tmp_path / "exported"), str(tmp_path / "back")
    commands = [
        ["show", store],
        ["verify", store],
        train(store, "blocks.0.hook_resid_post", "run"),
        ["show", run],
        ["export", run, "--out", exported],
        ["import", exported, "--activations", store, "--out", back],
        ["show", back],
        train(str(arrays), "x", "own"),
        ["evaluate", own, "--device", "cpu"],
    ]
    for command, code, heavy, said in imported(commands, MODELS):
        assert (command, code, heavy) == (command, 0, []), said

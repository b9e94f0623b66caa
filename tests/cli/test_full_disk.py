"""A disk that fills at any call of a verb: one sentence, nothing half, and the same goes on."""

import shutil
from itertools import permutations

import pytest
from conftest import small_config
from killed import contents, differing, run_killed, spread

from saelab.analysis.features import FeatureOptions, collect_features
from saelab.files import is_temporary
from saelab.training.loop import train
from saelab.training.run import Run

SAID = ("cat", "dog", "mat", "tree", "big", "red")
FULL, IN_CI = 8, 2
COMMANDS = {
    "train": "train topk --activations {store} --site blocks.0.hook_resid_post --d-sae 32 --k 4"
    " --n-tokens 2000 --batch-size 100 --log-every 5 --checkpoint-every 5 --lr 1e-2 --out new",
    "features": "features run --n-tokens 300 --batch-size 7 --checkpoint-every 90",
    "evaluate": "evaluate run --n-tokens 100 --suite core",
    "tasks": "tasks run --probe one.csv two.csv --n-train 60 --n-test 40",
    "explain": "explain run --llm tokens",
    "names": "names run --out names.csv",
    "steer": "steer run --all --prompt dog",
    "transport": "transport --run run --from blocks.0.hook_resid_post --to blocks.1.attn.hook_z"
    " --apart contexts --n-splice 100 --rank 4",
    "diff": "diff layers --n-tokens 100",
    "circuit": "circuit run --prompt the --n-members 0",
    "export": "export run --out lens",
    "publish": "publish run --out site",
    "push": "push run me/topk --dry-run --out folder",
    "import": "import {lens} --activations {store} --out new",
    "harvest": "harvest --model {model} --sites hook_embed --text {text} --n-tokens 200 --out new",
}
ANYWHERE = ("export", "push", "publish", "import", "explain", "names")
"""Verbs that take no --device."""


@pytest.fixture(scope="module")
def start(small_run, small_store, random_lm, tmp_path_factory):
    """A directory with a run, and its features, which steering needs; `layers` is a crosscoder.

    Beside them are two tables of labelled texts.
    """
    directory = tmp_path_factory.mktemp("start")
    run = Run(shutil.copytree(small_run.path, directory / "run"))
    collect_features(run, random_lm, FeatureOptions(n_tokens=200, n_examples=12, reach=3))
    values = {"sae": {"variant": "crosscoder", "d_sae": 32, "k": 4}, "n_tokens": 1000}
    both = small_config(small_store, site="+".join(small_store.sites[::2]), **values)
    train(both, out=directory / "layers", device="cpu")
    for number, name in enumerate(("one", "two")):
        rows = [f"{' '.join(w)},{w[number] < w[2]}" for w in permutations(SAID, 3)]
        (directory / f"{name}.csv").write_text("\n".join(["text,label", *rows]))
    return directory


@pytest.mark.parametrize(
    ("verb", "count"),
    [("train", IN_CI), ("harvest", IN_CI)]
    + [pytest.param(verb, FULL, marks=pytest.mark.exhaustive) for verb in COMMANDS],
)
def test_a_disk_that_fills_ends_in_a_sentence_and_once_it_is_free_the_work_goes_on(
    verb, count, start, small_store, checkpoint, text_file, tmp_path
):
    if verb == "import":
        exported = run_killed(["export", str(start / "run"), "--out", "lens"], None, tmp_path)
        assert exported.code == 0, exported.err
    places = {"store": small_store.path, "model": checkpoint, "text": text_file}
    argv = [p.format(**places, lens=tmp_path / "lens") for p in COMMANDS[verb].split()]
    argv += [] if verb in ANYWHERE else ["--device", "cpu"]
    whole = shutil.copytree(start, tmp_path / "whole")
    outcome = run_killed(argv, None, whole)
    assert outcome.code == 0, outcome.err
    expected = contents(whole)
    for n in spread(len(outcome.calls), count + 1)[:-1]:
        cwd = shutil.copytree(start, tmp_path / "full" / str(n))
        failed = run_killed(argv, n, cwd, full=True)
        if failed.code == 0:
            # Nothing needed space any more.
            assert differing(contents(cwd), expected) == [], (n, failed.calls[-3:])
            continue
        reasons = [line for line in failed.err.splitlines() if "No space left on device" in line]
        assert failed.code in (1, 2), (n, failed)
        assert len(reasons) == 1, failed.err
        assert reasons[0].startswith(f"saelab {verb}: ")
        assert "Traceback" not in failed.err
        assert not [path for path in cwd.rglob("*") if is_temporary(path) or path.suffix == ".lock"]
        again = run_killed(argv, None, cwd)
        assert again.code == 0, (n, again.err)
        assert differing(contents(cwd), expected) == [], (n, failed.calls[-3:])

"""Runs in training are shown with their progress, before they have weights."""

import json
import os
import shutil
from pathlib import Path

import pytest
from apps.driving import Open, curves, drawn
from feature_browser.data.catalogue import read_catalogue
from feature_browser.data.growing import GrowingRun, progress

from saelab.lock import RUN_LOCK
from saelab.owner import this_process


@pytest.fixture
def root(runs: Path, tmp_path: Path) -> Path:
    """`done`, and `young`, which this process trains: 30 lines, 2880 of 2880 tokens, 1 per 96."""
    shutil.copytree(runs / "plain", tmp_path / "done")
    young = tmp_path / "young"
    young.mkdir()
    for name in ("config.json", "provenance.json"):
        shutil.copy(runs / "plain" / name, young / name)
    lines = [
        {"step": s, "tokens": 96 * s, "fvu": 1 / s, "tokens_per_second": 48.0} for s in range(1, 16)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    # The last line is being written just now.
    (young / "metrics.jsonl").write_text(f'{text}{{"step": 16, "tok')
    (young / RUN_LOCK).write_text(json.dumps(this_process()))
    (young / "checkpoints").mkdir()
    (young / "checkpoints" / "step_000000010.safetensors").touch()
    return tmp_path


def young(root: Path) -> GrowingRun:
    return read_catalogue(root).growing["young"]


def test_progress_is_the_share_of_tokens_and_the_rest_at_the_last_speed(root: Path):
    run = young(root)
    now = progress(run, run.log())
    assert (now.share, now.seconds_left) == (0.5, 1440 / 48)
    assert f"process {os.getpid()}" in run.writer


def test_a_run_in_training_is_listed_and_drawn_with_curves_and_events(open_app: Open, root: Path):
    listed = drawn(open_app(root, view="runs"))
    assert 'href="?view=training&amp;run=young"' in listed
    assert "30 s left" in listed
    assert "left out" not in listed
    # Whatever page of it is asked for.
    app = open_app(root, run="young", latent="5")
    page = drawn(app)
    assert "young is in training" in page
    assert "50.0" in page
    assert "Checkpoint of step 10" in page
    assert "FVU" in curves(app)


def test_one_whose_process_has_ended_says_how_to_continue(open_app: Open, root: Path):
    (root / "young" / RUN_LOCK).unlink()
    page = drawn(open_app(root, run="young", view="training"))
    assert "young is unfinished" in page
    assert "saelab train" in page


def test_a_damaged_log_is_said_and_an_empty_one_is_no_problem(open_app: Open, root: Path):
    log = root / "young" / "metrics.jsonl"
    log.write_text("[]\n")
    assert "is not a JSON object" in drawn(open_app(root, run="young", view="training"))
    log.unlink()
    assert progress(young(root), young(root).log()).share == 0.0


def test_one_that_lost_its_weights_after_it_was_used_is_not_in_training(root: Path):
    shutil.copytree(root / "done", root / "lost")
    (root / "lost" / "weights.safetensors").unlink()
    found = read_catalogue(root)
    assert "lost" not in found.growing
    assert "no weights any more" in found.damaged["lost"]

"""What two runs owe to having begun at the same weights."""

import shutil
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from conftest import small_config
from feature_browser.data.catalogue import read_card
from feature_browser.data.reading import decoder, stamp
from feature_browser.pages.compare import job, pairs
from feature_browser.pages.compare.correspondence import ALIKE, correspond
from feature_browser.pages.compare.job import Progress
from feature_browser.pages.compare.pairs import match_some
from feature_browser.pages.compare.start import (
    Start,
    beginning,
    initial_decoder,
    same_start,
    seeds,
)

from saelab.training.loop import train

SAE = {"variant": "topk", "d_sae": 32, "k": 4}


@pytest.fixture(scope="module")
def root(small_store, tmp_path_factory):
    """Two runs of one seed that saw different rows, one of another seed, one transcoder."""
    directory = tmp_path_factory.mktemp("starts")
    for name, changes in {
        "one": {"seed": 0, "data_seed": 1},
        "two": {"seed": 0, "data_seed": 2, "sae": SAE | {"k": 6}},
        "other": {"seed": 1},
    }.items():
        train(small_config(small_store, n_tokens=600, **changes), out=directory / name)
    return directory


def card(root, name):
    return read_card(root / name, root)


def matched(first, second):
    return correspond(decoder(first), decoder(second))


def test_the_initial_decoder_is_that_of_a_run_before_its_first_step(small_store, tmp_path):
    import torch

    from saelab.training.source import Source
    from saelab.training.state import TrainingState

    config = small_config(small_store, n_tokens=600, seed=3)
    run = train(config, out=tmp_path / "run")
    source = Source([config], torch.device("cpu"))
    rows = (
        TrainingState.start(config, source, source.start_rows())
        .steps.trained()
        .W_dec.detach()
        .numpy()
    )
    drawn = initial_decoder(read_card(run.path, tmp_path), 0)
    np.testing.assert_array_equal(drawn.rows * drawn.norms[:, None], rows)


def test_what_may_be_chosen_is_matched_while_the_reader_looks(root, monkeypatch):
    monkeypatch.setattr(job, "_jobs", {})
    one, two, other = (card(root, name) for name in ("one", "two", "other"))
    match_some(one, [two, other])
    for thread in threading.enumerate():
        if thread.name == "compare-ahead":
            thread.join()
    assert len(job._jobs) == 2
    monkeypatch.setattr(job, "_started", None)
    assert found_same(pairs.matched(two, one), matched(two, one))


def found_same(one, other):
    return np.array_equal(one.this.nearest.row, other.this.nearest.row)


def test_matches_of_one_seed_are_mostly_the_rows_that_began_alike(root):
    one, two = card(root, "one"), card(root, "two")
    found = matched(one, two)
    start = same_start(one, two, found)
    assert isinstance(start, Start)
    assert (start.seed, start.untrained) == (0, 32)
    # Second method: equal initial decoders have equal rows at equal numbers.
    near = found.this.nearest
    assert start.same.tolist() == [
        row == i and cosine >= ALIKE
        for i, (row, cosine) in enumerate(zip(near.row, near.cosine, strict=True))
    ]
    assert start.same.sum() > 16
    cosines = (decoder(one).rows * initial_decoder(one, 0).rows).sum(1)
    assert start.stayed == pytest.approx(float(np.median(np.abs(cosines))))
    text = beginning(found, start, one, two)
    assert "Both runs began at the same weights (seed 0)" in text
    assert "are the very rows that began alike" in text


def test_larger_initial_decoders_are_matched_beside_the_page(root, monkeypatch):
    one, two = card(root, "one"), card(root, "two")
    found = matched(one, two)
    at_once = same_start(one, two, found)
    monkeypatch.setattr(job, "INITIAL_AT_ONCE", 100)
    monkeypatch.setattr(job, "_jobs", {})
    with monkeypatch.context() as held:
        held.setattr(job.threading.Thread, "start", lambda self: None)
        waiting = same_start(one, two, found)
    assert isinstance(waiting, Progress)
    assert "are being drawn and matched" in beginning(found, waiting, one, two)
    monkeypatch.setattr(job, "_jobs", {})
    same_start(one, two, found)
    for begun in job._jobs.values():
        begun.thread.join()
    start = same_start(one, two, found)
    assert isinstance(at_once, Start)
    assert isinstance(start, Start)
    assert start.untrained == at_once.untrained
    assert start.same.tolist() == at_once.same.tolist()
    # What was kept is not taken for the comparison of the trained decoders.
    (path,) = (one.path / job.DIRECTORY).glob("*.h5")
    sides = [
        job.WeightsFile(run.weights_path, stamp(run.path / "config.json"), partial(decoder, run))
        for run in (one, two)
    ]
    assert job._kept_at(*sides) != path


def test_other_seeds_share_no_beginning(root):
    one, other = card(root, "one"), card(root, "other")
    found = matched(one, other)
    assert seeds(one, other) == (0, 1)
    assert same_start(one, other, found) is None
    assert "different random weights (seeds 0 and 1)" in beginning(found, None, one, other)


def test_an_imported_run_has_no_known_beginning(root):
    one = card(root, "one")
    imported = replace(card(root, "two"), n_tokens=0)
    found = matched(one, imported)
    assert seeds(one, imported) is None
    assert "did not begin at random weights" in beginning(
        found, same_start(one, imported, found), one, imported
    )


def test_what_cannot_be_drawn_anew_is_said_with_the_seed(root, tmp_path, monkeypatch):
    one, two = card(root, "one"), card(root, "two")
    found = matched(one, two)
    monkeypatch.setattr("feature_browser.pages.compare.start.MOST_NUMBERS", 10)
    assert same_start(one, two, found) is None
    assert "Both began with seed 0, perhaps at the same weights" in beginning(found, None, one, two)
    monkeypatch.undo()
    copy = shutil.copytree(root / "two", tmp_path / "two")
    (copy / "config.json").write_text("{}")
    assert same_start(one, replace(two, path=copy), found) is None

"""Features, evaluations, steering scores and circuits, killed at any call that changes a file."""

import shutil

import pytest
from killed import check_kills, run_killed, spread

from saelab.analysis.features import FeatureOptions, collect_features
from saelab.training.run import Run

FULL, IN_CI = 40, 2
COMMANDS = {
    "features": ["--n-tokens", "300", "--batch-size", "7", "--checkpoint-every", "90"],
    "evaluate": ["--n-tokens", "100", "--suite", "core"],
    "steer": ["--all", "--prompt", "the big cat sat on"],
    "circuit": ["--prompt", "the big cat sat on", "--n-members", "0", "--figure", "picture.html"],
}


@pytest.fixture(scope="module")
def start(small_run, random_lm, tmp_path_factory):
    """A directory with a run, and its features, which steering needs."""
    directory = tmp_path_factory.mktemp("start")
    run = Run(shutil.copytree(small_run.path, directory / "run"))
    collect_features(run, random_lm, FeatureOptions(n_tokens=200, n_examples=12, reach=3))
    return directory


@pytest.mark.parametrize(
    ("verb", "count"),
    [("features", IN_CI), ("circuit", IN_CI)]
    + [pytest.param(verb, FULL, marks=pytest.mark.exhaustive) for verb in COMMANDS],
)
def test_what_was_killed_at_any_call_ends_as_if_never_stopped(verb, count, start, tmp_path):
    argv = [verb, "run", *COMMANDS[verb], "--device", "cpu"]
    whole = shutil.copytree(start, tmp_path / "whole")
    outcome = run_killed(argv, None, whole)
    assert outcome.code == 0, outcome.err
    # The first call that the CI takes is one in the middle: the lock's are in every other test.
    places = spread(len(outcome.calls), max(3, count))
    check_kills(argv, places[-count:], start, whole, tmp_path / "scratch")

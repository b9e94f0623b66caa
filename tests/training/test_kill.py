"""A training killed at any call that changes a file: the same command ends as if never stopped."""

import pytest
from conftest import small_config
from killed import check_kills, run_killed, spread

FULL, IN_CI = 40, 6


def arguments(config):
    names = ("activations", "site", "n_tokens", "batch_size", "lr", "log_every", "dead_after")
    names += ("checkpoint_every",)
    made = ["train", "topk", "--d-sae", "32", "--k", "4", "--out", "run", "--device", "cpu"]
    for name in names:
        made += [f"--{name.replace('_', '-')}", str(getattr(config, name))]
    return made


@pytest.fixture(scope="module")
def whole(small_store, tmp_path_factory):
    """The command, where it ran through, and the calls that it made."""
    cwd = tmp_path_factory.mktemp("whole")
    # Checkpoints fall between lines of the log and onto them.
    config = small_config(small_store, n_tokens=4000, log_every=7, checkpoint_every=10)
    argv = arguments(config)
    outcome = run_killed(argv, None, cwd)
    assert outcome.code == 0, outcome.err
    return argv, cwd, outcome.calls


@pytest.mark.parametrize(
    "count", [IN_CI, pytest.param(FULL, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_a_training_killed_at_any_call_ends_as_if_never_stopped(whole, tmp_path, count):
    argv, cwd, calls = whole
    assert len(calls) > FULL
    start = tmp_path / "start"
    start.mkdir()
    check_kills(argv, spread(len(calls), count), start, cwd, tmp_path / "scratch")

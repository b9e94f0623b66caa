"""A training killed at any call that changes a file: the same command ends as if never stopped."""

import json
import shutil

import pytest
from conftest import small_config
from killed import check_kills, contents, differing, run_killed, spread

from saelab.sae.interop.convert import to_foreign
from saelab.sae.interop.sae_lens_write import write_sae_lens

FULL, IN_CI = 40, 6
OLDEST = "os.remove run/checkpoints/step_000000005.safetensors"
SOME_AND_ALL = [IN_CI, pytest.param(FULL, marks=pytest.mark.exhaustive)]


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
    # Checkpoints fall between lines of the log and onto them.
    config = small_config(small_store, n_tokens=4000, log_every=7, checkpoint_every=10)
    return ran(arguments(config), tmp_path_factory.mktemp("whole"))


def ran(argv, cwd):
    outcome = run_killed(argv, None, cwd)
    assert outcome.code == 0, outcome.err
    return argv, cwd, outcome.calls


def check(whole, tmp_path, count):
    argv, cwd, calls = whole
    start = tmp_path / "start"
    start.mkdir()
    for path in cwd.iterdir():
        if path.is_file():
            shutil.copy(path, start)
    check_kills(argv, spread(len(calls), count), start, cwd, tmp_path / "scratch")


@pytest.mark.parametrize("count", SOME_AND_ALL)
def test_a_training_killed_at_any_call_ends_as_if_never_stopped(whole, tmp_path, count):
    assert len(whole[2]) > FULL
    check(whole, tmp_path, count)


@pytest.mark.exhaustive
def test_trainings_that_share_a_read_end_as_if_never_stopped(small_store, tmp_path):
    base = small_config(small_store, log_every=7, checkpoint_every=10).model_dump(mode="json")
    cwd = tmp_path / "whole"
    cwd.mkdir()
    sweep = {"base": base, "runs": {"a": {}, "b": {"sae.k": 6}, "c": {"n_tokens": 1500}}}
    (cwd / "sweep.json").write_text(json.dumps(sweep))
    argv = ["train", "sweep", "sweep.json", "--out", "runs", "--device", "cpu"]
    check(ran(argv, cwd), tmp_path, 12)


@pytest.mark.exhaustive
def test_an_import_killed_at_any_call_is_made_by_the_same_command(small_run, tmp_path):
    write_sae_lens(to_foreign(small_run.load_sae()), tmp_path / "theirs")
    cwd = tmp_path / "whole"
    cwd.mkdir()
    options = small_run.options
    argv = ["import", str(tmp_path / "theirs"), "--activations", options["activations"]]
    check(ran([*argv, "--site", options["site"], "--out", "run"], cwd), tmp_path, FULL)


def test_a_kill_of_the_second_try_is_no_worse(whole, tmp_path):
    argv, cwd, calls = whole
    for n in (len(calls) // 2, len(calls) // 3, 3):
        assert run_killed(argv, n, tmp_path).killed
    ran(argv, tmp_path)
    assert differing(contents(tmp_path), contents(cwd)) == []


def test_equal_trainings_give_equal_bytes(small_store, tmp_path):
    """Not even the order of a header's keys differs; the checkpoints', which go, neither."""
    config = small_config(small_store, n_tokens=1600, log_every=100, checkpoint_every=5)
    argv, n, found = arguments(config), None, {}
    for name in ("whole", "first", "second"):
        (tmp_path / name).mkdir()
        calls = run_killed(argv, n, tmp_path / name).calls
        found[name] = contents(tmp_path / name)
        # The others die where three checkpoints are there, and the oldest is about to go.
        n = calls.index(OLDEST) if n is None else n
    assert "run/checkpoints/step_000000015.safetensors" in found["first"]
    # A lock names its process.
    assert differing(found["first"], found["second"]) == ["run/writer.lock"]

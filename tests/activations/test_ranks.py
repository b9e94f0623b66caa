"""Several processes write one store, and only processes of one launch do."""

import os
import socket
import subprocess
import sys
import time

import pytest
from activations.store_cases import content_of, harvest_process, make_manifest

from saelab.activations.verify import verify
from saelab.activations.writer import StoreWriter
from saelab.config import UsageError
from saelab.files import temporary_name
from saelab.ranks import Ranks


def test_without_variables_a_process_is_alone():
    assert Ranks.from_environment({"MASTER_PORT": "1"}) == Ranks(0, 1, "")


def test_the_launch_is_what_torchrun_gives_to_all_its_processes():
    given = {"RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "a", "MASTER_PORT": "29500"}
    assert Ranks.from_environment(given).world == 2
    other = {**given, "MASTER_PORT": "29501"}
    assert Ranks.from_environment(given).launch != Ranks.from_environment(other).launch


@pytest.mark.parametrize(
    "given",
    [
        {"RANK": "0"},
        {"WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "one", "WORLD_SIZE": "2"},
    ],
)
def test_half_a_launch_is_refused(given):
    with pytest.raises(UsageError, match="set both"):
        Ranks.from_environment(given)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_every_unit_belongs_to_exactly_one_process(world):
    ranks = [Ranks(rank, world) for rank in range(world)]
    assert all(sum(r.owns(unit) for r in ranks) == 1 for unit in range(20))


def test_ranks_of_one_launch_write_beside_each_other(tmp_path):
    manifest = make_manifest()
    with (
        StoreWriter.create(tmp_path / "s", manifest, Ranks(0, 2, "a")) as first,
        StoreWriter.create(tmp_path / "s", manifest, Ranks(1, 2, "a")) as second,
    ):
        assert (first.missing_units(), second.missing_units()) == ([0, 2], [1])
    assert list((tmp_path / "s" / "state").iterdir()) == []


@pytest.mark.parametrize(
    "other",
    [Ranks(0, 2, "a"), Ranks(1, 2, "b"), Ranks(1, 3, "a"), Ranks(0, 1)],
    ids=["same rank", "other launch", "other world", "alone"],
)
def test_any_other_launch_is_refused_with_pid_and_host(tmp_path, other):
    manifest = make_manifest()
    with StoreWriter.create(tmp_path / "s", manifest, Ranks(0, 2, "a")):
        with pytest.raises(UsageError, match=f"process {os.getpid()} on {socket.gethostname()}"):
            StoreWriter.create(tmp_path / "s", manifest, other)
        StoreWriter.create(tmp_path / "s", manifest, Ranks(1, 2, "a")).close()


def test_ranks_with_different_arguments_do_not_share_a_store(tmp_path):
    with (
        StoreWriter.create(tmp_path / "s", make_manifest(), Ranks(0, 2)),
        pytest.raises(UsageError, match="seed is 7 in the store, 8 asked"),
    ):
        StoreWriter.create(tmp_path / "s", make_manifest(seed=8), Ranks(1, 2))


@pytest.mark.parametrize("name", ["tokens/000000.h5", "manifest.json"])
def test_a_running_ranks_temporary_files_stay(store_path, name):
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ours = temporary_name(store_path / name)
    running = ours.with_name(ours.name.replace(f".{os.getpid()}.", f".{sleeper.pid}."))
    running.touch()
    try:
        _leave_lock_of(store_path, sleeper.pid)
        StoreWriter.create(store_path, make_manifest(), Ranks(0, 2)).close()
        assert running.exists()
    finally:
        sleeper.communicate(b"\n")
    StoreWriter.create(store_path, make_manifest(), Ranks(0, 2)).close()
    assert not running.exists()


def _leave_lock_of(store, pid):
    import json

    from saelab.owner import start_time

    owner = {"host": socket.gethostname(), "pid": pid, "started": start_time(pid)}
    (store / "state").mkdir(exist_ok=True)
    lock = store / "state" / "writer-1.lock"
    lock.write_text(json.dumps({**owner, "world": 2, "launch": ""}))


@pytest.mark.slow
def test_two_processes_make_the_store_that_one_makes(alone, checkpoint, long_text, tmp_path):
    processes = [
        harvest_process(
            checkpoint, long_text, tmp_path / "s", {"RANK": str(rank), "WORLD_SIZE": "2"}
        )
        for rank in range(2)
    ]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert any(out.splitlines()[-1:] == [str(tmp_path / "s")] for out, _ in outputs)
    assert verify(tmp_path / "s") == []
    assert content_of(tmp_path / "s") == content_of(alone)


@pytest.mark.slow
def test_one_process_finishes_what_a_killed_rank_left(alone, checkpoint, long_text, tmp_path):
    processes = [
        harvest_process(
            checkpoint, long_text, tmp_path / "s", {"RANK": str(rank), "WORLD_SIZE": "2"}
        )
        for rank in range(2)
    ]
    lock = tmp_path / "s" / "state" / "writer-1.lock"
    while not lock.exists() and processes[1].poll() is None:
        time.sleep(0.002)
    processes[1].kill()
    for process in processes:
        process.communicate()
    assert processes[0].returncode == 0
    resumed = harvest_process(checkpoint, long_text, tmp_path / "s", {})
    _, errors = resumed.communicate()
    assert resumed.returncode == 0, errors
    assert verify(tmp_path / "s") == []
    assert content_of(tmp_path / "s") == content_of(alone)
    assert list((tmp_path / "s" / "state").iterdir()) == []

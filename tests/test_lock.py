"""One process writes a directory, on this host or another, and the dead let go."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from saelab import lock
from saelab.config import UsageError
from saelab.files import temporary_name
from saelab.lock import RUN_LOCK, STALE, Lock, check_held, entries, writing
from saelab.owner import host, start_time, this_process

ROOT = Path(__file__).resolve().parents[1]
HOLD = """
import sys
from pathlib import Path
from saelab.lock import writing
with writing(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(run, code=HOLD):
    """A process that holds the lock of a run, until this is left."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.communicate()


def left_by(run, *, age=0.0, **changes):
    """A lock as its owner would have left it, last touched `age` seconds ago."""
    run.mkdir(exist_ok=True)
    owner = {**this_process(), "heartbeat": 30.0, "token": "t", **changes}
    return left(run, json.dumps(owner), age)


def left(run, text, age):
    path = run / RUN_LOCK
    path.write_text(text)
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))
    return path


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def test_a_second_process_is_refused_with_pid_and_host_of_the_first(run):
    with another_process(run) as process:
        whose = rf"written by process {process.pid} on {host()}; wait for it, or remove .*lock"
        with pytest.raises(UsageError, match=whose), writing(run):
            pass
    with writing(run):
        pass
    assert not run.exists()


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lock_of_a_killed_process_is_taken_over_with_a_word(run, capsys, reaped):
    run.mkdir()
    with another_process(run) as process:
        process.kill()
        if reaped:
            process.wait()
        else:
            # It ends, and stays listed, since nobody has asked how it ended.
            while (
                start_time(process.pid) and lock.runs(lock.read_owner(run / RUN_LOCK)) is not False
            ):
                time.sleep(0.001)
        with writing(run):
            told = capsys.readouterr().err
            assert f"taken over from process {process.pid} on {host()}, which has died" in told
            assert json.loads((run / RUN_LOCK).read_text())["pid"] == os.getpid()


def test_the_lock_of_a_process_whose_pid_was_given_to_another_is_taken_over(run):
    left_by(run, started="before")
    with writing(run):
        pass


@pytest.mark.parametrize(
    "elsewhere",
    [{"host": "elsewhere"}, {"machine": "another boot, or container"}],
    ids=["another host", "another machine of this name"],
)
def test_a_lock_from_elsewhere_holds_as_long_as_its_heart_beats(run, capsys, elsewhere):
    # The pid is of this very process, which says nothing about another machine's.
    name = elsewhere.get("host", host())
    left_by(run, age=STALE - 60, **elsewhere)
    with pytest.raises(UsageError, match=f"process {os.getpid()} on {name}"), writing(run):
        pass
    left_by(run, age=STALE + 60, **elsewhere)
    with writing(run):
        told = capsys.readouterr().err
    assert f"taken over from process {os.getpid()} on {name}, which has not touched" in told
    assert list(run.iterdir()) == []


def test_the_clock_is_that_of_the_file_system(run, monkeypatch):
    left_by(run, age=STALE - 60, host="elsewhere")
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with pytest.raises(UsageError, match="elsewhere"), writing(run):
        pass


def test_a_lock_of_an_older_version_elsewhere_has_no_heart_and_is_respected(run):
    old = json.dumps({"host": "elsewhere", "pid": 1, "started": "1"})
    run.mkdir()
    left(run, old, 100 * STALE)
    with pytest.raises(UsageError, match="process 1 on elsewhere"), writing(run):
        pass


def test_an_old_lock_of_this_host_is_judged_by_its_pid(run):
    run.mkdir()
    left(run, json.dumps({"host": host(), "pid": dead_pid(), "started": "1"}), 0)
    with writing(run):
        pass
    mine = {key: this_process()[key] for key in ("host", "pid", "started")}
    with another_process(run) as process:
        theirs = mine | {"pid": process.pid, "started": start_time(process.pid)}
        left(run, json.dumps(theirs), 100 * STALE)
        with pytest.raises(UsageError, match=f"process {process.pid}"), writing(run):
            pass


@pytest.mark.parametrize("text", ["", "{}", "[" * 10_000, "\x00", '{"host": 1, "pid": "x"}'])
def test_what_names_nobody_holds_for_a_while(run, text):
    run.mkdir()
    left(run, text, 0)
    with pytest.raises(UsageError, match="an unknown process"), writing(run):
        pass
    left(run, text, STALE + 60)
    with writing(run):
        pass


def test_the_owner_touches_its_locks(run, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.01)
    monkeypatch.setattr(lock, "_beating", None)
    with writing(run):
        path = run / RUN_LOCK
        os.utime(path, (1, 1))
        until = time.monotonic() + 60
        while path.stat().st_mtime == 1 and time.monotonic() < until:
            time.sleep(0.01)
        assert path.stat().st_mtime > 1


def test_nobody_touches_a_lock_that_another_has_taken_over(run):
    with writing(run) as mine:
        left_by(run, host="elsewhere", age=50)
        before = (run / RUN_LOCK).stat().st_mtime
        mine.touch()
        assert (run / RUN_LOCK).stat().st_mtime == before
        with pytest.raises(OSError, match="was taken over by process"):
            check_held(run)
    assert json.loads((run / RUN_LOCK).read_text())["host"] == "elsewhere"


def test_a_directory_that_was_removed_is_not_made_again(run):
    with writing(run):
        (run / RUN_LOCK).unlink()
        run.rmdir()
        with pytest.raises(OSError, match="was removed"):
            check_held(run)
    assert not run.exists()


def test_a_thread_may_enter_again_and_another_may_not(run):
    refused = []

    def enter():
        try:
            with writing(run):
                pass
        except UsageError as error:
            refused.append(str(error))

    with writing(run) as outer:
        with writing(run) as inner:
            assert inner is outer
        assert (run / RUN_LOCK).exists()
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in refused[0]
    enter()
    assert len(refused) == 1


def test_a_cell_that_was_interrupted_is_not_refused_when_it_runs_again(run):
    with pytest.raises(KeyboardInterrupt), writing(run):
        raise KeyboardInterrupt
    with writing(run):
        pass
    # Also not by a lock that the interruption left behind.
    left_by(run)
    with writing(run):
        pass


def test_a_lock_that_is_forgotten_is_released(run):
    run.mkdir()
    Lock(run / RUN_LOCK, run)
    assert list(run.iterdir()) == []


def test_a_fork_neither_holds_nor_releases(run):
    def child():
        check_held(run)
        lock._held.clear()
        sys.exit(0)

    with writing(run):
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        assert process.exitcode == 0
        check_held(run)


def test_a_file_system_without_hard_links_has_locks_too(run, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with writing(run):
        check_held(run)
        (child,) = run.iterdir()
        assert json.loads(child.read_text())["pid"] == os.getpid()
        monkeypatch.setattr(lock, "_held", {})
        left_by(run, host="elsewhere")
        with pytest.raises(UsageError, match="elsewhere"), writing(run):
            pass


def test_a_server_that_lost_its_answer_to_a_link_has_made_it(run, monkeypatch):
    real = os.link

    def lost(source, target):
        real(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", lost)
    with writing(run):
        check_held(run)


def test_a_directory_where_nothing_can_be_written_is_one_sentence(run, monkeypatch):
    run.mkdir()

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(UsageError, match=r"cannot be written to: Read-only file system"):
        Lock(run / RUN_LOCK, run)
    assert list(run.iterdir()) == []


def test_unfinished_files_of_the_dead_are_removed_and_those_of_the_living_stay(run):
    (run / "evaluation").mkdir(parents=True)
    (run / "config.json").touch()
    mine = temporary_name(run / "evaluation" / "summary.json")
    dead = mine.with_name(mine.name.replace(f".{os.getpid()}.", f".{dead_pid()}."))
    elsewhere = mine.with_name(mine.name.replace(f".{host()}.", ".elsewhere."))
    old = elsewhere.with_name(elsewhere.name.replace("summary", "density"))
    foreign = run / ".notes.tmp"
    for path in (mine, dead, elsewhere, old, foreign):
        path.touch()
    os.utime(old, (1, 1))
    os.utime(foreign, (1, 1))
    partial = temporary_name(run / "features.partial").name.replace(str(os.getpid()), "4194305")
    (run / partial).mkdir()
    with writing(run):
        pass
    assert {*run.rglob(".*")} == {mine, elsewhere, foreign}


def test_a_lock_and_unfinished_files_are_nothing_of_a_directorys_own(run):
    with writing(run):
        temporary_name(run / "config.json").touch()
        assert entries(run) == []
        (run / "mine.txt").touch()
        assert [path.name for path in entries(run)] == ["mine.txt"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_process_that_is_stopped_leaves_no_lock(run, number):
    run.mkdir()
    code = HOLD.replace(
        "with writing",
        "from saelab.interrupt import stopped_by_signal\nwith stopped_by_signal(), writing",
    )
    with another_process(run, code) as process:
        process.send_signal(number)
        process.wait()
        assert list(run.iterdir()) == []

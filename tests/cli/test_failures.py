"""What the system refuses, and signals, end a command with one sentence."""

import errno
import json
import os
import pkgutil
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from killed import contents

import saelab.cli.show
from saelab.cli import main
from saelab.lock import RUN_LOCK, STALE, writing
from saelab.owner import host, this_process
from saelab.training.run import Run


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


TRAIN = "train topk --activations {store} --site blocks.0.hook_resid_post --d-sae 32 --k 4"
TRAIN += " --n-tokens 2000 --batch-size 100 --log-every 5 --checkpoint-every 5 --lr 1e-2"
TRAIN += " --device cpu"
VERBS = {
    "train": f"{TRAIN} --out",
    "sweep": "train sweep {sweep} --out",
    "harvest": "harvest --model tiny --sites hook_embed --text tiny --n-tokens 10 --out",
    "import": "import {run} --activations {store} --out",
    "export": "export {run} --out",
    "push": "push {run} me/topk --dry-run --out",
    "publish": "publish {run} --out",
    "demo": "demo --out",
    "bench": "bench variants --out",
    "claims": "claims --device cpu --out",
    "explain": "explain {run} --llm m --export-prompts",
    "names": "names {run} --out",
    "tasks": "tasks {run} --saebench",
    "tasks csv": "tasks {run} --csv",
    "circuit figure": "circuit {run} --prompt the --device cpu --figure",
    "circuit tracer": "circuit {run} --prompt the --device cpu --circuit-tracer",
}
FILES = ("explain", "names", "tasks csv", "circuit figure", "circuit tracer")


def bad_places(directory):
    """Names under which nobody can write, and what is said of them."""
    (directory / "file").write_text("mine")
    (directory / "loop").symlink_to("loop")
    (directory / "dangling").symlink_to("nowhere/at/all")
    (directory / "round").symlink_to("about")
    (directory / "about").symlink_to("round")
    os.mkfifo(directory / "pipe")
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(directory / "socket"))
    bound.close()
    return {
        "file": (directory / "file", "is a file"),
        "below a file": (directory / "file" / "run", "is no directory"),
        "far below a file": (directory / "file" / "a" / "run", "is no directory"),
        "device": ("/dev/full", "is a device"),
        "below a device": ("/dev/null/run", "/dev/null is no directory"),
        "pipe": (directory / "pipe", "is a named pipe"),
        "socket": (directory / "socket", "is a socket"),
        "long name": (directory / ("n" * 256), "a name may have 255 bytes"),
        "long path": ("/".join([str(directory), *["n" * 200] * 21]), "a whole path 4095"),
        "link to itself": (directory / "loop", "in a circle"),
        "circle of links": (directory / "round" / "run", "in a circle"),
        "link to nothing": (directory / "dangling", "which is missing"),
    }


TEXTS = {
    "harvest": "harvest --model {model} --sites a --n-tokens 10 --out {out} --text {text}",
    "evaluate": "evaluate {run} --model {model} --text {text}",
    "claims": "claims --model {model} --out {out} --text {text}",
    "bench": "bench store --model {model} --text {text}",
    "unlearning": "tasks {run} --model {model} --unlearn {questions} --keep {questions} "
    "--keep-text tiny --forget-text {text}",
}


@pytest.mark.parametrize("verb", TEXTS)
def test_a_text_that_is_missing_is_told_before_the_model_is_looked_for(
    verb, small_run, tmp_path, capsys
):
    names = {name: tmp_path / name for name in ("model", "out", "text", "questions")}
    assert run(*filled(TEXTS[verb], run=small_run.path, **names)) == 2
    assert f"{tmp_path / 'text'} is neither a file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def filled(template, **values):
    return [part.format(**values) for part in template.split()]


@pytest.mark.parametrize("verb", VERBS)
def test_where_nothing_can_be_written_is_said_before_any_work(
    verb, small_run, small_store, tmp_path, capsys
):
    places = bad_places(tmp_path)
    sweep = tmp_path / "sweep.json"
    sweep.write_text(json.dumps({"runs": {"a": {}}}))
    before = sorted(tmp_path.rglob("*"))
    command = filled(VERBS[verb], store=small_store.path, run=small_run.path, sweep=sweep)
    for name, (place, reason) in places.items():
        if verb in FILES and name in ("file", "link to nothing"):
            continue
        assert run(*command, place) == 2, name
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1), err
        assert reason in err
        assert len(err) < 700
    if verb in FILES:
        assert run(*command, tmp_path) == 2
        assert "is a directory; name a file" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("verb", [v for v in VERBS if v not in FILES])
def test_a_directory_that_this_user_cannot_write_to_is_refused(
    verb, small_run, small_store, tmp_path, capsys, monkeypatch
):
    # The superuser may write everywhere, so the answer is given by hand.
    monkeypatch.setattr(os, "access", lambda *_: False)
    command = filled(VERBS[verb], store=small_store.path, run=small_run.path, sweep=tmp_path)
    assert run(*command, tmp_path / "new") == 2
    assert f"{tmp_path} cannot be written to" in capsys.readouterr().err


RUN_VERBS = ["features", "explain", "evaluate", "steer", "transport", "diff", "circuit", "export"]
RUN_VERBS += ["show", "names", "tasks", "push", "publish"]


@pytest.mark.parametrize("verb", RUN_VERBS)
def test_a_run_that_cannot_be_is_one_sentence(verb, tmp_path, capsys):
    rest = {
        "steer": ["--all"],
        "circuit": ["--prompt", "a"],
        "explain": ["--llm", "tokens"],
        "tasks": ["--letters"],
        "export": ["--out", tmp_path / "x"],
        "publish": ["--out", tmp_path / "x"],
        "push": ["me/topk", "--dry-run", "--out", tmp_path / "x"],
    }
    for place, _ in bad_places(tmp_path).values():
        words = ["--from", "x", "--run", place] if verb == "transport" else [place]
        assert run(verb, *words, *rest.get(verb, [])) == 2
        assert capsys.readouterr().err.count("\n") == 1


NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE)
NUMBERS += (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ESTALE, errno.ENOTCONN)


def failing_show(monkeypatch, error):
    def fail(_):
        raise error

    monkeypatch.setattr(saelab.cli.show, "main", fail)


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_every_error_of_the_system_is_one_sentence(number, capsys, monkeypatch):
    said = os.strerror(number)
    failing_show(monkeypatch, OSError(number, said, "a/file"))
    assert run("show", "x") == 1
    err = capsys.readouterr().err
    assert err.startswith(f"saelab show: a/file: {said}")
    assert err.count("\n") == 1
    # HDF5 has the number in its text only.
    text = f"Can't write data (file write failed: time = 1,\n errno = {number}, error message)"
    failing_show(monkeypatch, OSError(text))
    assert run("show", "x") == 1
    assert said in capsys.readouterr().err


def test_an_error_without_a_number_is_its_first_line(capsys, monkeypatch):
    failing_show(monkeypatch, OSError("no such model.\nSee the manual."))
    assert run("show", "x") == 1
    assert capsys.readouterr().err == "saelab show: no such model.\n"


def test_an_error_of_ours_is_no_sentence(monkeypatch):
    failing_show(monkeypatch, KeyError("bug"))
    with pytest.raises(KeyError):
        run("show", "x")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_verb_with_its_lock_released(number, tmp_path, capsys, monkeypatch):
    def work(_):
        with writing(tmp_path / "run"):
            os.kill(os.getpid(), number)
            pytest.fail("the signal came too late")

    monkeypatch.setattr(saelab.cli.show, "main", work)
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    assert run("show", "x") == 128 + number
    assert capsys.readouterr().err == f"saelab show: stopped by {number.name}.\n"
    assert not (tmp_path / "run").exists()
    assert handlers == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]


def test_what_nohup_ignores_stays_ignored(monkeypatch):
    def work(_):
        os.kill(os.getpid(), signal.SIGHUP)
        return 0

    monkeypatch.setattr(saelab.cli.show, "main", work)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run("show", "x") == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("command", [["show", "{run}"], ["export", "--help"]])
def test_output_that_cannot_be_printed_is_one_sentence(command, small_run):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "saelab.cli", *(c.format(run=small_run.path) for c in command)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"saelab {command[0]}: No space left on device; free some space.")
    assert done.stderr.count("\n") == 1


LOCKED = {
    "train": [],
    "features": [],
    "evaluate": [],
    "tasks": ["--letters"],
    "steer": ["--all"],
    "steer concepts": ["--concepts"],
    "steer success": ["--success", "3"],
    "circuit": ["--prompt", "the big cat"],
    "import": [],
}


@pytest.mark.parametrize("verb", LOCKED)
def test_a_second_one_on_a_run_is_refused_with_pid_and_host_of_the_first(
    verb, small_run, small_store, tmp_path, capsys
):
    path = tmp_path / "run"
    shutil.copytree(small_run.path, path)
    command = [verb.split()[0], path, *LOCKED[verb]]
    if verb in ("train", "import"):
        shutil.rmtree(path)
        path.mkdir()
        exported = tmp_path / "exported"
        assert run("export", small_run.path, "--out", exported) == 0
        command = [*filled(VERBS[verb], store=small_store.path, run=exported), path]
    capsys.readouterr()
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        for where, pid in ((host(), sleeper.pid), ("elsewhere", 1)):
            leave_lock(path, where, pid)
            before = contents(path)
            assert run(*command) == 2
            err = capsys.readouterr().err
            assert f"{path} is being written by process {pid} on {where}; wait for it" in err
            assert err.count("\n") == 1
            assert contents(path) == before
    finally:
        sleeper.communicate(b"\n")


def leave_lock(path, where, pid, age=0.0):
    from saelab.owner import start_time

    owner = {**this_process(), "host": where, "pid": pid, "started": start_time(pid)}
    lock = path / RUN_LOCK
    lock.write_text(json.dumps({**owner, "heartbeat": 30.0, "token": "t"}))
    then = lock.stat().st_mtime - age
    os.utime(lock, (then, then))


def test_a_run_whose_host_is_gone_goes_on(small_store, tmp_path, capsys):
    path = tmp_path / "run"
    path.mkdir()
    leave_lock(path, "elsewhere", 1, STALE + 60)
    assert run(*filled(VERBS["train"], store=small_store.path), path) == 0
    assert "taken over from process 1 on elsewhere" in capsys.readouterr().err
    assert Run(path).finished
    assert not (path / RUN_LOCK).exists()


def test_two_trainings_of_different_runs_do_not_meet(small_store, tmp_path):
    with writing(tmp_path / "a"):
        assert run(*filled(VERBS["train"], store=small_store.path), tmp_path / "b") == 0


GOING = {
    "train": ("saelab.training.one_training.Training.save", []),
    "features": ("saelab.analysis.features.reading.ShardWriter.commit", ["--n-tokens", "100"]),
    "evaluate": ("saelab.evaluation.evaluate.save_evaluation", ["--n-tokens", "50"]),
    "circuit": ("saelab.analysis.circuits.session.save_circuit", ["--prompt", "the big cat"]),
}


@pytest.mark.parametrize("verb", GOING)
def test_a_run_that_is_removed_meanwhile_is_not_made_again_by_halves(
    verb, small_run, small_store, tmp_path, capsys, monkeypatch
):
    path = tmp_path / "run"
    command = [verb, path]
    if verb == "train":
        command = [*filled(VERBS["train"], store=small_store.path), path]
    else:
        shutil.copytree(small_run.path, path)
    target, options = GOING[verb]
    module, _, name = target.rpartition(".")
    owner = pkgutil.resolve_name(f"{module}")
    whole = getattr(owner, name)

    def remove_first(*args, **kwargs):
        shutil.rmtree(path)
        return whole(*args, **kwargs)

    monkeypatch.setattr(owner, name, remove_first)
    options = [*options, *([] if verb == "train" else ["--device", "cpu"])]
    assert run(*command, *options) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"saelab {verb}: {path}")
    assert not path.exists()


def test_a_file_may_be_as_large_as_the_limit_says(small_run, tmp_path):
    """The limit's signal is ignored, so that the write fails and can be told."""
    # Python would leave cut bytecode of saelab behind, which no later process could import.
    code = "import resource, sys\nsys.dont_write_bytecode = True\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
    code += "from saelab.cli import main\nsys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "export", str(small_run.path), "--out", str(tmp_path / "x")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"{tmp_path / 'x' / 'sae_weights.safetensors'}: File too large; raise" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()

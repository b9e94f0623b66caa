"""The command searches no package for garbage; where saelab is a library, nothing changes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sources import ROOT

PAUSES = """
import gc, json
from threading import Thread
from saelab.collector import paused, whole_process

def inside():
    with paused():
        return gc.isenabled()

def work():
    with paused():
        yield "inside", [inside(), gc.isenabled()]
    yield "behind", [gc.isenabled()]
    try:
        with paused():
            raise ValueError
    except ValueError:
        yield "behind an error", [gc.isenabled()]
    seen = []
    other = Thread(target=lambda: seen.append(inside()))
    other.start()
    other.join()
    yield "other thread", seen
    gc.disable()
    yield "off before", [inside(), gc.isenabled()]

library = {"library": [inside()]}
print(json.dumps(library | whole_process(lambda: dict(work()))))
"""
LOADS = """
import gc, json, weakref
from saelab.collector import whole_process
from saelab.lm.load import load_language_model

def freed():
    lm = load_language_model("tiny", device="cpu")
    weights = weakref.ref(next(lm._bridge.original_model.parameters()))
    del lm
    gc.collect()
    return weights() is None

def state():
    return gc.isenabled(), gc.get_freeze_count() > 200_000

print(json.dumps([freed(), state(), whole_process(freed), state()]))
"""

ENDS = """
import sys
from pathlib import Path
from saelab.collector import whole_process
from saelab.files import temporary_directory
from saelab.lock import Lock

class Circle:
    def __init__(self, root):
        self.itself = self
        self.directory = temporary_directory(self, "saelab-test-")
        self.lock = Lock(root / "writer.lock", root)

def work():
    circle = Circle(Path(sys.argv[1]))
    print(circle.directory)
    print(circle.lock.path)
    if sys.argv[2] == "error":
        raise ValueError("in the work")
    return int(sys.argv[2])

sys.exit(whole_process(work))
"""


def ended(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def run(script):
    done = ended(script)
    assert done.returncode == 0, done.stderr[-1500:]
    return json.loads(done.stdout)


def test_a_pause_ends_also_after_an_error_and_leaves_other_processes_and_threads_alone():
    found = run(PAUSES)
    assert found == {
        "library": [True],
        "inside": [False, False],
        "behind": [True],
        "behind an error": [True],
        "other thread": [True],
        "off before": [False, False],
    }


@pytest.mark.parametrize(("argument", "code"), [("0", 0), ("3", 3), ("error", 1)])
def test_at_the_end_all_is_printed_and_nothing_temporary_stays(argument, code, tmp_path):
    done = ended(ENDS, str(tmp_path), argument)
    assert done.returncode == code
    assert ("ValueError: in the work" in done.stderr) == (argument == "error")
    directory, lock = map(Path, done.stdout.splitlines())
    assert (lock.parent, directory.is_absolute()) == (tmp_path, True)
    assert not directory.exists()
    assert not lock.exists()


def test_packages_are_kept_out_of_collections_and_models_are_not():
    library, then, command, behind = run(LOADS)
    assert (library, then) == (True, [True, False])
    assert (command, behind) == (True, [True, True])

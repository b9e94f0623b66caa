"""Memory does not grow with the number of tokens."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = Path(__file__).with_name("memory_probe.py")


def peaks(directory, n_tokens):
    directory.mkdir()
    command = [sys.executable, str(PROBE), str(directory), str(n_tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.exhaustive
def test_peak_memory_is_that_of_a_third_of_the_tokens(tmp_path):
    """Of the 138 MB that the longer store has more nothing stays, nor of its text's tokens.

    `memory_probe.py` measures longer texts in the same way.
    """
    short, long = (peaks(tmp_path / str(n), n) for n in (600_000, 1_800_000))
    assert long["rows"] > 2.9 * short["rows"]
    assert long["read"] - short["read"] < 40

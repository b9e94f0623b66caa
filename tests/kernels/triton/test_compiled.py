"""Kernels as a GPU's compiler reads them; the interpreter accepts more."""

import os
import subprocess
import sys
from pathlib import Path

from kernels.triton_device import DEVICE

TESTS = Path(__file__).resolve().parents[2]


def test_kernels_of_the_step_compile_for_all_dtypes_without_a_gpu():
    assert DEVICE
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kernels.compiled"]
    found = subprocess.run(
        command, cwd=TESTS, env=kept, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]
    done = found.stdout.split()
    assert done.count("_keep_kernel") == 4
    assert done.count("step_kernel") == 8
    assert (done.count("_parts_kernel"), done.count("_add_kernel")) == (2, 1)

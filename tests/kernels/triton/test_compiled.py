"""Kernels as a GPU's compiler reads them; the interpreter accepts more."""

import os
import subprocess
import sys
from pathlib import Path

from kernels.triton_device import DEVICE

TESTS = Path(__file__).resolve().parents[2]


def test_the_kernels_of_aux_k_compile_for_both_dtypes_without_a_gpu():
    assert DEVICE
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kernels.compiled"]
    found = subprocess.run(
        command, cwd=TESTS, env=kept, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.split().count("_keep_kernel") == 4

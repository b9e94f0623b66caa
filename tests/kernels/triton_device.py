"""Where Triton's kernels run in these tests: a CUDA device, or the CPU by interpretation."""

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

if DEVICE == "cpu":
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    # Triton reads the variable when it is imported, which may have happened before.
    if not isinstance(tl.sum, InterpretedFunction):
        pytest.skip("Triton was imported without TRITON_INTERPRET=1", allow_module_level=True)

"""Indices beyond 32 bits: kernels on memory of which only a few pages exist."""

import mmap
import sys

import numpy as np
import pytest
import torch
from kernels.triton_device import DEVICE

from saelab.config import UsageError
from saelab.kernels.cuda import MAX_K
from saelab.kernels.exchange import ALONE
from saelab.kernels.rules import FusedRule
from saelab.kernels.sizes import ceil_div, fits_batch_select, segment_width
from saelab.kernels.triton.codes.residual import _gradient_kernel
from saelab.kernels.triton.select.ties import TieFactors
from saelab.kernels.triton.step.codes import empty_codes
from saelab.kernels.triton.step.rules import Rules

NORESERVE = 0x4000
"""Linux: memory that is counted when it is written."""


@pytest.mark.skipif(DEVICE != "cpu" or sys.platform != "linux", reason="it needs such memory")
def test_the_gradient_of_codes_sums_chunks_beyond_32_bits():
    """Three chunks of 2^30 entries; an index that wraps would read the zeros before them."""
    n, before, read = 2**30, 2**31, 256
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    memory = np.frombuffer(mmap.mmap(-1, 4 * (before + 3 * n), flags=flags), np.float32)
    parts = torch.randn(3, read, generator=torch.Generator().manual_seed(0))
    for chunk, part in enumerate(parts):
        start = before + chunk * n
        memory[start : start + read] = part.numpy()
    # The interpreter copies what a tensor owns, which is the first entries alone.
    dots = torch.from_numpy(memory[before : before + read])
    values, gradient = torch.ones(read), torch.zeros(read)
    indices, scale = torch.zeros(read, dtype=torch.int32), torch.full((1,), 0.5)
    _gradient_kernel[(1,)](
        values, indices, scale, dots, gradient, 4.0, n, CHUNKS=3, SIGNED=True, BLOCK=read
    )
    torch.testing.assert_close(gradient, 2 * parts.sum(0))


def test_a_batch_of_more_than_32_bits_is_selected_from_unless_too_much_is_chosen():
    assert fits_batch_select(8192, 2**18, 8192 * MAX_K)
    assert not fits_batch_select(8192, 2**18, 8192 * 2048)
    assert fits_batch_select(8192, 2**17, 8192 * 2048)
    rules = Rules(FusedRule(k=2048, over_batch=True), total_variance=1.0)
    x, W = (torch.empty(n, 1, device="meta") for n in (8192, 2**18))
    with pytest.raises(UsageError, match=r"Selecting 16777216 of 8192 x 262144 .* lower the batch"):
        empty_codes(x, TieFactors(x, W, W[:, 0]), rules, ALONE)


@pytest.mark.parametrize("bits", range(4, 27))
def test_a_row_has_as_many_segments_as_16_bits_count(bits):
    assert ceil_div(2**bits, segment_width(2**bits)) < 2**16
    assert segment_width(2**bits) in (64, 128) or bits > 22

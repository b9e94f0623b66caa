"""The sum of squared distances against float64."""

import pytest
import torch
from kernels.triton_device import DEVICE

from saelab.kernels.triton.distance import BLOCK, BLOCKS, squared_distance_


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("n", "d"), [(0, 5), (1, 1), (7, 33), (3, BLOCK * BLOCKS // 3), (40, 2 * BLOCK + 1)]
)
def test_it_is_the_sum_in_float64_also_far_from_zero(n, d, dtype):
    generator = torch.Generator().manual_seed(n + d)
    point = 100 * torch.randn(d, generator=generator)
    rows = (point + torch.randn(n, d, generator=generator)).to(DEVICE, dtype)
    expected = (rows.double() - point.to(rows).double()).pow(2).sum()
    found = squared_distance_(rows, point.to(rows))
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)

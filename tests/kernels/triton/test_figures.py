"""The figures of a step against float64."""

import pytest
import torch
from kernels.triton_device import DEVICE

from saelab.kernels.torch.figures import add_figures_
from saelab.kernels.triton.figures import BLOCK, BLOCKS, add_by_kernels_


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("n", "d", "k"),
    [(0, 5, 2), (1, 1, 1), (7, 33, 4), (3, BLOCK * BLOCKS // 3, 1), (40, 2 * BLOCK + 1, 900)],
)
def test_they_are_the_sums_in_float64_also_far_from_zero(n, d, k, dtype):
    generator = torch.Generator().manual_seed(n + d)
    point = 100 * torch.randn(d, generator=generator)
    rows = (point + torch.randn(n, d, generator=generator)).to(DEVICE, dtype)
    point, before = point.to(rows), [1.0, 2.0, 3.0, 4.0]
    values = torch.randn(n, k, generator=generator).relu().to(DEVICE, dtype)
    mse_sum, loss = (torch.tensor(value, device=DEVICE) for value in (0.7, 0.3))
    expected = torch.tensor(before, dtype=torch.float64, device=DEVICE)
    sums = expected.clone()
    add_by_kernels_(sums, rows, point, values, mse_sum, loss)
    expected[0] += (mse_sum * n).double()
    expected[1] += (rows.double() - point.double()).pow(2).sum()
    expected[2] += int((values > 0).sum())
    expected[3] += loss.double()
    torch.testing.assert_close(sums, expected, rtol=1e-6, atol=0)
    assert torch.equal(sums[[0, 2, 3]], expected[[0, 2, 3]])


def test_torch_adds_the_same():
    generator = torch.Generator().manual_seed(0)
    rows, values = torch.randn(6, 5, generator=generator), torch.randn(6, 2, generator=generator)
    given = rows, torch.ones(5), values.relu(), torch.tensor(0.5), torch.tensor(0.25)
    ours = torch.ones(4, dtype=torch.float64)
    theirs = ours.to(DEVICE, copy=True)
    add_figures_(ours, *given)
    add_by_kernels_(theirs, *(each.to(DEVICE) for each in given))
    torch.testing.assert_close(ours, theirs.cpu())

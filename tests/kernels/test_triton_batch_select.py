"""The selection over a whole batch against a stable sort of it, under the interpreter."""

import pytest
import torch
from kernels.triton_device import DEVICE

from saelab.kernels.triton_batch_select import select_batch_top_k


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CASES = {
    "random": (normal(5, 150), 12),
    "more than there are segments": (normal(3, 150), 40),
    "all": (normal(2, 70), 140),
    "one": (normal(4, 64), 1),
    "equal": (torch.ones(4, 70), 9),
    "ties": (normal(6, 130).round(), 30),
    "one row has all": (torch.cat([normal(1, 130) + 9, normal(4, 130)]), 20),
    "few are positive": (-normal(4, 130).abs() + 1.5, 200),
    "infinite": (torch.tensor([[float("inf"), -float("inf"), 0.0, 1.0] * 20] * 3), 50),
}


def expected(x, n, *, signed):
    flat = x.flatten()
    size = (flat.abs() if signed else flat).float()
    chosen = size.sort(descending=True, stable=True).indices[:n].sort().values
    values = flat[chosen].float() if signed else flat[chosen].float().relu()
    starts = torch.searchsorted(chosen, torch.arange(len(x)) * x.shape[1])
    return values, chosen % x.shape[1], starts


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("signed", "dtype"), [(False, torch.float32), (True, torch.float32), (False, torch.bfloat16)]
)
def test_it_keeps_what_a_stable_sort_of_the_batch_puts_first(case, signed, dtype):
    x, n = CASES[case]
    x = x.to(dtype)
    found = select_batch_top_k(x.to(DEVICE), n, by_magnitude=signed)
    for ours, theirs in zip(found, expected(x, n, signed=signed), strict=True):
        torch.testing.assert_close(ours.cpu().to(theirs.dtype), theirs, rtol=0, atol=0)


def test_negative_magnitudes_of_bfloat16_are_ranked_too():
    x = normal(4, 70, seed=3).bfloat16()
    found = select_batch_top_k(x.to(DEVICE), 17, by_magnitude=True)
    for ours, theirs in zip(found, expected(x, 17, signed=True), strict=True):
        torch.testing.assert_close(ours.cpu().to(theirs.dtype), theirs, rtol=0, atol=0)
    assert (found.values < 0).any()

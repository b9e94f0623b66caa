"""The selection by columns against a stable sort of each, under the interpreter."""

import pytest
import torch
from kernels.triton_device import DEVICE

from saelab.kernels.reference import select_column_top_k as reference
from saelab.kernels.torch.zipf import ColumnBudgets
from saelab.kernels.triton.select import columns as module
from saelab.pursuit.select import column_top_k
from saelab.types import SparseCodes


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# 150 rows are five segments, so budgets above five are read whole.
CASES = {
    "random": (normal(150, 12), [90, 40, 6, 5, 5, 4, 3, 2, 2, 1, 1, 1]),
    "all of some, none of others": (normal(33, 5), [33, 33, 2, 0, 0]),
    "ties": (normal(70, 9, seed=1).round(), [60, 30, 3, 3, 2, 2, 2, 1, 1]),
    "equal": (torch.ones(100, 4), [77, 4, 2, 1]),
    "few are positive": (-normal(64, 6).abs() + 0.5, [50, 20, 2, 2, 2, 1]),
    "one row": (normal(1, 40), [1] * 40),
    "infinite": (torch.tensor([[-torch.inf, 0.0, torch.inf, 1.0]] * 40).T.repeat(10, 1), [3] * 40),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_each_latent_keeps_its_largest_entries_and_of_equal_ones_the_first(name, dtype):
    x, counts = CASES[name]
    x, budgets = x.to(DEVICE, dtype), ColumnBudgets.of(torch.tensor(counts))
    ranked = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(5)).to(DEVICE)
    found = module.select_column_top_k(x, ranked, budgets)
    codes = SparseCodes(found.values, found.indices.long(), x.shape[1], found.offsets)
    by_latent = torch.zeros_like(ranked).scatter(0, ranked, budgets.counts.to(DEVICE))
    assert torch.equal(codes.dense(), reference(x, by_latent).float())
    chosen = torch.bincount(codes.indices, minlength=x.shape[1])
    assert torch.equal(chosen, by_latent)
    places = codes.rows() * x.shape[1] + codes.indices
    assert bool((places.diff() > 0).all())


def test_columns_of_several_chunks_are_read_to_their_end(monkeypatch):
    monkeypatch.setattr(module, "ENTRIES", 64)
    x, budgets = normal(200, 3).round().to(DEVICE), ColumnBudgets.of(torch.tensor([150, 30, 7]))
    found = module.select_column_top_k(x, torch.arange(3, device=DEVICE), budgets)
    codes = SparseCodes(found.values, found.indices.long(), 3, found.offsets)
    assert torch.equal(codes.dense(), reference(x, budgets.counts.to(DEVICE)))


@pytest.mark.parametrize("name", ["random", "few are positive", "one row"])
def test_torch_keeps_the_same_as_a_sort(name):
    x, counts = CASES[name]
    budgets = ColumnBudgets.of(torch.tensor(counts))
    codes = column_top_k(x, torch.arange(x.shape[1]), budgets)
    assert torch.equal(codes.dense(), reference(x, budgets.counts))
    assert len(codes.values) == sum(counts)

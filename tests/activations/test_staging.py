"""Rows on their way to the device are the rows of the files."""

import numpy as np
import pytest
import torch
from activations.store_cases import HOOK

from saelab.activations.batches import ShuffledBatches
from saelab.activations.staging import Staging
from saelab.activations.store import ActivationStore

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ),
]


@pytest.mark.parametrize("device", DEVICES)
def test_a_group_is_the_rows_of_its_blocks_also_in_memory_that_was_used(store_path, device):
    store = ActivationStore(store_path)
    view, staging = store.site(HOOK), Staging(torch.device(device))
    for blocks in (np.array([2, 0]), np.array([1])):
        n_rows = int(store.blocks.count[blocks].sum())
        rows = staging.load({HOOK: view}, blocks, n_rows)[HOOK]
        order = staging.order(np.arange(n_rows)[::-1].copy())
        staging.receive()
        expected = view.read_blocks(blocks)
        assert torch.equal(rows.cpu(), expected)
        assert torch.equal(rows[order].cpu(), expected.flip(0))
        staging.release()


@pytest.mark.parametrize("device", DEVICES)
def test_batches_are_those_of_the_cpu(store_path, device):
    store = ActivationStore(store_path)
    here = ShuffledBatches(store, HOOK, 16, pool_rows=64)
    there = ShuffledBatches(store, HOOK, 16, pool_rows=64, device=device)
    for _ in range(3 * store.n_rows // 16):
        assert torch.equal(next(here).x, next(there).x.cpu())

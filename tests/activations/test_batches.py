import json
from typing import Any

import numpy as np
import pytest
import torch
from activations.store_cases import GRADIENT, HOOK, WIDE, expected_rows, overwrite
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.activations.arrays import write_arrays
from saelab.activations.batches import BatchSites, ShuffledBatches
from saelab.activations.format import DamagedStoreError, tokens_path
from saelab.activations.order import Blocks, EpochPlan, permutation
from saelab.activations.store import ActivationStore
from saelab.config import UsageError

N_ROWS = 7001


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Rows that are their own index, in units of 3000, 3000 and 1001 rows."""
    x = torch.arange(N_ROWS, dtype=torch.float32)[:, None]
    path = write_arrays(tmp_path_factory.mktemp("s") / "s", {"a": x}, rows_per_unit=3000)
    return ActivationStore(path)


def batches_of(store, batch_size=256, **options: Any):
    values: dict[str, Any] = {"pool_rows": 2500} | options
    return ShuffledBatches(store, "a", batch_size, **values)


def rows_of(batches, n):
    """The next `n` rows, as the indices that they are."""
    served = [next(batches).x[:, 0] for _ in range(-(-n // batches.batch_size))]
    return torch.cat(served)[:n].long()


@pytest.mark.parametrize("batch_size", [1000, 256, N_ROWS, 2 * N_ROWS])
@pytest.mark.parametrize("pool_rows", [1, 2500, 2**16])
def test_every_epoch_serves_every_row_once(store, batch_size, pool_rows):
    served = rows_of(batches_of(store, batch_size, pool_rows=pool_rows), 2 * N_ROWS)
    for epoch in served.split(N_ROWS):
        assert torch.equal(epoch.sort()[0], torch.arange(N_ROWS))


def test_epochs_differ(store):
    first, second = rows_of(batches_of(store), 2 * N_ROWS).split(N_ROWS)
    assert (first == second).float().mean() < 0.01


def test_the_order_is_fixed_by_the_seed(store):
    first = rows_of(batches_of(store, seed=3), N_ROWS)
    assert torch.equal(first, rows_of(batches_of(store, seed=3), N_ROWS))
    assert not torch.equal(first, rows_of(batches_of(store, seed=4), N_ROWS))


def test_the_order_does_not_depend_on_the_batch_size(store):
    assert torch.equal(
        rows_of(batches_of(store, 100), N_ROWS), rows_of(batches_of(store, 777), N_ROWS)
    )


def test_resuming_is_exact_at_every_batch_over_two_epochs(store):
    batches = batches_of(store, 500)
    states, served = [], []
    for _ in range(2 * N_ROWS // 500 + 1):
        states.append(json.loads(json.dumps(batches.state_dict())))
        served.append(next(batches).x)
    for state, expected in zip(states, served, strict=True):
        resumed = batches_of(store, 500)
        resumed.load_state_dict(state)
        assert torch.equal(next(resumed).x, expected)


@pytest.mark.parametrize("pool_rows", [1, 2500, 2**16])
def test_parts_of_batches_are_cut_from_the_same_batches(store, pool_rows):
    whole = rows_of(batches_of(store, 900, pool_rows=pool_rows), 2 * N_ROWS).split(900)
    for part in (slice(0, 300), slice(300, 600), slice(600, 900)):
        batches = ShuffledBatches(store, BatchSites("a", part=part), 900, pool_rows=pool_rows)
        for expected in whole[:-1]:
            assert torch.equal(next(batches).x[:, 0].long(), expected[part])
        assert batches.rows_served == 900 * (len(whole) - 1)


def test_loading_an_earlier_state_into_running_batches_goes_back(store):
    batches = batches_of(store)
    state = batches.state_dict()
    first = rows_of(batches, 4000)
    batches.load_state_dict(state)
    assert torch.equal(rows_of(batches, 4000), first)


@pytest.mark.parametrize("change", [{"seed": 1}, {"pool_rows": 100}])
def test_a_state_of_another_order_is_refused_and_the_reason_named(store, change):
    state = batches_of(store).state_dict()
    with pytest.raises(UsageError, match=next(iter(change))):
        batches_of(store, **change).load_state_dict(state)


def test_a_state_of_a_store_that_grew_is_refused(store_path):
    whole = ShuffledBatches(ActivationStore(store_path), HOOK, 8).state_dict()
    tokens_path(store_path, 2).unlink()
    smaller = ShuffledBatches(ActivationStore(store_path), HOOK, 8)
    with pytest.raises(UsageError, match="store was"):
        smaller.load_state_dict(whole)


def test_target_and_gradient_are_of_the_same_rows(store_path):
    store = ActivationStore(store_path)
    sites = BatchSites(WIDE, target=HOOK, grad=GRADIENT)
    batch = next(ShuffledBatches(store, sites, 32))
    assert batch.target is not None
    assert batch.grad is not None
    token = batch.target[:, 0].numpy().astype(np.int64)
    assert torch.equal(batch.x, expected_rows(store.manifest, WIDE, token))
    assert torch.equal(batch.grad, expected_rows(store.manifest, GRADIENT, token))


@pytest.mark.parametrize(
    "sites", [BatchSites(HOOK, grad=WIDE), BatchSites(HOOK, target=WIDE, grad=GRADIENT)]
)
def test_a_gradient_is_of_what_is_reconstructed(store_path, sites):
    with pytest.raises(UsageError, match="does not hold gradients"):
        ShuffledBatches(ActivationStore(store_path), sites, 8)


def test_damage_reaches_the_one_who_asks_for_batches(tmp_path):
    path = write_arrays(tmp_path / "s", {"a": torch.zeros(5000, 4)})
    file = path / "hooks" / "a" / "000000.h5"
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    overwrite(file, bytes(data))
    batches = ShuffledBatches(ActivationStore(path), "a", 1000, pool_rows=1024)
    with pytest.raises(DamagedStoreError, match=r"a/000000\.h5"):
        rows_of(batches, 5000)
    assert batches.rows_served % 1000 == 0


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=8).map(tuple),
    st.integers(1, 10_000),
    st.integers(0, 2**63 - 1),
)
def test_groups_partition_an_epoch_into_near_equal_parts(unit_rows, pool_rows, seed):
    table = Blocks.of_units(unit_rows, 1024)
    plan = EpochPlan.create(table, pool_rows, seed=seed, epoch=0)
    blocks = np.concatenate([plan.group_blocks(group) for group in range(plan.n_groups)])
    assert sorted(blocks) == list(range(len(table.count)))
    assert plan.rows[-1] == sum(unit_rows)
    assert np.diff(plan.rows).max() < pool_rows + 1024
    assert all(plan.group_of(int(row)) == group for group, row in enumerate(plan.rows[:-1]))


def test_permutations_are_fixed_for_good():
    """Worked out once: a resumed run must see the same order with every numpy version."""
    assert permutation(8, 1, 2).tolist() == [7, 1, 3, 0, 4, 2, 6, 5]

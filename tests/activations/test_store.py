import numpy as np
import pytest
import torch
from activations.store_cases import GRADIENT, HOOK, WIDE, make_manifest, overwrite, write_store

from saelab.activations.arrays import write_arrays
from saelab.activations.format import DamagedStoreError, tokens_path
from saelab.activations.sealed import SealedFile
from saelab.activations.store import ActivationStore
from saelab.activations.writer import StoreWriter
from saelab.config import UsageError


@pytest.fixture(scope="module")
def normal(tmp_path_factory):
    """10,000 rows with a large mean and columns of different variance, and their store."""
    x = torch.randn(10_000, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = (x * torch.arange(1, 7) + 300).float()
    path = write_arrays(tmp_path_factory.mktemp("normal") / "s", {"a": x}, rows_per_unit=3000)
    return x, ActivationStore(path)


def test_mean_and_variance_merged_over_units_are_those_of_one_float64_pass(normal):
    x, store = normal
    exact = x.double().numpy()
    view = store.site("a")
    assert np.allclose(view.mean, exact.mean(axis=0), rtol=1e-12)
    assert view.total_variance == pytest.approx(exact.var(axis=0).sum(), rel=1e-9)
    assert view.sums.max_abs == np.abs(exact).max()


def test_a_sample_has_distinct_rows_of_the_store(normal):
    x, store = normal
    sample = store.site("a").sample(2000, seed=3)
    known = {tuple(row) for row in x.tolist()}
    drawn = {tuple(row) for row in sample.tolist()}
    assert len(drawn) == 2000
    assert drawn <= known


def test_a_sample_of_everything_is_everything(normal):
    x, store = normal
    assert torch.equal(store.site("a").sample(10_000, seed=0).sort(0)[0], x.sort(0)[0])


def test_samples_follow_their_seed(normal):
    view = normal[1].site("a")
    assert torch.equal(view.sample(50, seed=1), view.sample(50, seed=1))
    assert not torch.equal(view.sample(50, seed=1), view.sample(50, seed=2))


def test_a_sample_larger_than_the_store_is_refused(normal):
    with pytest.raises(UsageError, match="10001 rows was asked of a store with 10000"):
        normal[1].site("a").sample(10_001, seed=0)


def test_taken_rows_are_those_of_the_slice_in_the_order_asked(normal):
    view = normal[1].site("a")
    rows = np.array([9999, 0, 3000, 2999, 0])
    assert torch.equal(view.take(rows), view.rows(0, 10_000)[torch.from_numpy(rows)])


def test_rows_outside_the_store_are_an_index_error(normal):
    with pytest.raises(IndexError, match="10000"):
        normal[1].site("a").take(np.array([10_000]))


def test_a_sample_is_the_same_rows_at_every_site(store_path):
    store = ActivationStore(store_path)
    x, grad = store.site(HOOK).sample(20, seed=0), store.site(GRADIENT).sample(20, seed=0)
    assert torch.equal((grad - x)[:, 0], torch.full((20,), 10_000.0))


def test_an_unknown_site_is_refused_and_the_nearest_comes_first(store_path):
    with pytest.raises(UsageError, match=r"it has blocks\.10\.attn/hook_z, "):
        ActivationStore(store_path).site("blocks.10.hook_z")


def test_contexts_come_back_in_the_order_of_the_harvest(store_path):
    first, contexts = zip(*ActivationStore(store_path).contexts(), strict=True)
    assert first == (0, 4, 8)
    assert np.array_equal(np.concatenate(contexts)[:, 0], 100 * np.arange(10))


def test_an_interrupted_store_shows_only_whole_units(store_path):
    tokens_path(store_path, 1).unlink()
    store = ActivationStore(store_path)
    assert (store.units, store.complete, store.n_rows) == ((0, 2), False, 30)
    assert len(store.site(HOOK).rows(0, 30)) == 30


def test_a_store_without_a_unit_says_so(tmp_path):
    StoreWriter.create(tmp_path / "s", make_manifest()).close()
    with pytest.raises(UsageError, match="no committed unit yet"):
        ActivationStore(tmp_path / "s").site(HOOK)


def test_reading_is_possible_while_a_writer_holds_the_store(store_path):
    with StoreWriter.create(store_path, make_manifest()):
        assert ActivationStore(store_path).site(WIDE).n_rows == 50


def test_a_damaged_block_is_found_when_it_is_read_and_named(tmp_path):
    path = write_arrays(tmp_path / "s", {"a": torch.zeros(5000, 4)})
    file = path / "hooks" / "a" / "000000.h5"
    data = bytearray(file.read_bytes())
    with SealedFile(file) as sealed:
        start = sealed.trailer.payload_offset
    data[start + 16 * 2500] ^= 1
    overwrite(file, bytes(data))
    view = ActivationStore(path).site("a")
    assert len(view.rows(0, 2048)) == 2048
    with pytest.raises(DamagedStoreError, match=r"a/000000\.h5 is damaged in block 2"):
        view.rows(2048, 3000)


def test_a_file_of_another_store_is_refused(store_path, tmp_path):
    other = write_store(tmp_path / "other", make_manifest(seed=8))
    for name in ("tokens", "hooks/blocks.1.hook_resid_post"):
        file = store_path / name / "000001.h5"
        mine = file.read_bytes()
        overwrite(file, (other / name / "000001.h5").read_bytes())
        with pytest.raises(DamagedStoreError, match="belongs to a store with another manifest"):
            ActivationStore(store_path).site(HOOK)
        overwrite(file, mine)


def test_a_file_replaced_while_the_store_is_open_is_refused(store_path):
    view = ActivationStore(store_path).site(HOOK)
    overwrite(
        store_path / "hooks/blocks.1.hook_resid_post/000000.h5",
        (store_path / "hooks/blocks.1.hook_resid_post/000001.h5").read_bytes(),
    )
    with pytest.raises(DamagedStoreError, match="replaced"):
        view.rows(0, 1)

"""Several sites as one: the same rows, side by side, each at unit variance per dimension."""

import shutil

import numpy as np
import pytest
import torch

from saelab.activations.arrays import write_arrays
from saelab.activations.batches import ShuffledBatches
from saelab.activations.joint import JointSite
from saelab.activations.store import ActivationStore
from saelab.config import UsageError

WIDTHS = {"a": 5, "b": 3}


def arrays(seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    scale = {"a": 1.0, "b": 40.0}
    return {
        name: (scale[name] * draw.normal(size=(600, width)) + 3).astype(np.float32)
        for name, width in WIDTHS.items()
    }


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("joint")
    return [
        write_arrays(root / "one", arrays(0), rows_per_unit=256, dtype="bfloat16"),
        write_arrays(root / "two", arrays(1), rows_per_unit=256),
    ]


@pytest.mark.parametrize(("name", "n", "d_in"), [("a+b", 1, 8), ("b", 2, 6), ("b+a", 2, 16)])
def test_its_rows_are_those_of_its_sites_however_they_are_read(paths, name, n, d_in):
    store = ActivationStore(paths[0], beside=paths[1:n])
    site = store.site(name)
    assert isinstance(site, JointSite)
    assert site.d_in == d_in
    every = torch.cat(
        [
            of.one_site(hook).rows(0, 600) * factor
            for (of, hook), factor in zip(store.members(name), site.factors, strict=True)
        ],
        dim=1,
    )
    blocks = np.arange(len(store.blocks.count))
    assert torch.equal(site.rows(0, 600), every)
    assert torch.equal(site.read_blocks(blocks), every)
    assert torch.equal(torch.cat([site.read_block(int(b)) for b in blocks]), every)
    chosen = np.array([599, 3, 300])
    assert torch.equal(site.take(chosen), every[chosen])
    np.testing.assert_array_equal(site.read_alone(chosen), every[chosen].numpy())
    np.testing.assert_allclose(site.mean, every.double().mean(0), rtol=1e-5)
    assert site.total_variance == pytest.approx(d_in, rel=1e-5)
    for part in every.double().split(site.widths, dim=1):
        assert float(part.var(0, correction=0).sum()) == pytest.approx(part.shape[1], rel=1e-5)


def test_a_batch_holds_the_same_rows_of_every_site(paths):
    store = ActivationStore(paths[0], beside=paths[1:])
    joint = next(ShuffledBatches(store, "a", 64, seed=3)).x.split(5, dim=1)
    site = store.site("a")
    assert isinstance(site, JointSite)
    for path, rows, factor in zip(paths, joint, site.factors, strict=True):
        alone = next(ShuffledBatches(ActivationStore(path), "a", 64, seed=3)).x
        torch.testing.assert_close(rows, alone * factor)


def test_resuming_beside_another_store_is_refused(paths):
    state = ShuffledBatches(ActivationStore(paths[0]), "a", 64).state_dict()
    batches = ShuffledBatches(ActivationStore(paths[0], beside=paths[1:]), "a", 64)
    with pytest.raises(UsageError, match="store was"):
        batches.load_state_dict(state)


def test_a_site_named_twice_and_one_that_is_missing_are_refused(paths):
    store = ActivationStore(paths[0])
    with pytest.raises(UsageError, match="names a hook twice"):
        store.site("a+a")
    for name in ("a+", "+a", "a++b", "+"):
        with pytest.raises(UsageError, match=r"a name is missing beside a \+; write A\+B"):
            store.site(name)
    with pytest.raises(UsageError, match="has no site 'c'; it has b, a"):
        store.site("a+c")


def test_stores_of_other_tokens_are_refused(paths, tmp_path):
    fewer = write_arrays(tmp_path / "fewer", {"a": arrays(0)["a"][:500]}, rows_per_unit=256)
    with pytest.raises(UsageError, match=r"500 rows in 2 units .* not of the same tokens; harvest"):
        ActivationStore(paths[0], beside=[fewer])
    mixed = write_arrays(tmp_path / "mixed", {"a": arrays(0)["a"]}, rows_per_unit=256, seed=5)
    with pytest.raises(UsageError, match=r"Unit 0 of .*mixed is of other tokens than"):
        ActivationStore(paths[0], beside=[mixed])


def test_a_store_beside_itself_or_its_copy_is_refused(paths, tmp_path):
    (tmp_path / "link").symlink_to(paths[0])
    copy = shutil.copytree(paths[0], tmp_path / "copy")
    for beside in ([paths[0]], [tmp_path / "link"], [copy], [paths[1], copy], [paths[1]] * 2):
        with pytest.raises(UsageError, match=r"the same activations .* give each store once"):
            ActivationStore(paths[0], beside=beside)

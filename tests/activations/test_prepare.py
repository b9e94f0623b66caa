"""Rows become what is stored, wherever they are when they are handed over."""

import threading
import time
import weakref

import numpy as np
import pytest
import torch
from activations.store_cases import HOOK, files_of, make_columns, make_manifest
from activations.test_staging import DEVICES

from saelab.activations import summing
from saelab.activations.background import BackgroundWriter
from saelab.activations.format import SiteSpec
from saelab.activations.prepare import RowPreparer
from saelab.activations.store import ActivationStore
from saelab.activations.writer import StoreWriter


def random_rows(n, d, dtype=torch.float32):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n)).to(dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_are_permuted_converted_and_summed(monkeypatch, device, dtype):
    """Also in memory that held a larger unit, and in pieces of which the last is short."""
    for name in ("PIECE_NUMBERS", "GPU_PIECE_NUMBERS"):
        monkeypatch.setattr(summing, name, 7 * 16)
    preparer = RowPreparer(dtype)
    for n in (50, 30):
        rows, order = random_rows(n, 16), np.random.default_rng(n).permutation(n)
        done = preparer.prepare(rows.to(device), order)
        stored = rows[torch.from_numpy(order)].to(getattr(torch, dtype))
        assert torch.equal(done.rows, stored)
        exact = stored.double()
        np.testing.assert_allclose(done.sums.sum, exact.sum(0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(done.sums.sum_sq, exact.square().sum(0), rtol=1e-12)
        assert done.sums.max_abs == float(exact.abs().max())
        assert done.sums.n == n


@pytest.mark.parametrize("device", DEVICES)
def test_units_written_beside_the_caller_are_those_written_by_it(tmp_path, device):
    """A GPU's are handed over while it still computes them."""
    manifest = make_manifest(sites=(SiteSpec(hook=HOOK, d_in=64),), label_names=())
    stores = [tmp_path / "own", tmp_path / "beside"]
    given = {u: random_rows(make_columns(manifest, u).n_rows, 64) for u in range(manifest.n_units)}
    with StoreWriter.create(stores[0], manifest) as writer:
        for unit, rows in given.items():
            writer.write_unit(unit, {HOOK: rows.double().float()}, make_columns(manifest, unit))
    eye = torch.eye(64, device=device)
    with StoreWriter.create(stores[1], manifest) as writer, BackgroundWriter(writer) as background:
        for unit, rows in given.items():
            there = rows.to(device)
            for _ in range(50):
                there = there @ eye
            background.write_unit(unit, {HOOK: there}, make_columns(manifest, unit))
    if device == "cpu":
        assert files_of(stores[0]) == files_of(stores[1])
    # A GPU's sums may differ in their last bits.
    own, beside = (ActivationStore(path).site(HOOK).rows(0, 50) for path in stores)
    assert torch.equal(own, beside)


def test_a_unit_that_is_prepared_is_not_held(tmp_path, monkeypatch):
    """While a slow disk is waited for, the memory that it came in serves the next."""
    manifest = make_manifest(sites=(SiteSpec(hook=HOOK, d_in=64),), label_names=())
    columns = make_columns(manifest, 0)
    activations = [{HOOK: random_rows(columns.n_rows, 64)}]
    gone, slow_disk = weakref.ref(activations[0][HOOK]), threading.Event()
    commit = StoreWriter.commit

    def waiting(writer, prepared):
        assert slow_disk.wait(60)
        commit(writer, prepared)

    monkeypatch.setattr(StoreWriter, "commit", waiting)
    with StoreWriter.create(tmp_path / "s", manifest) as writer, BackgroundWriter(writer) as later:
        later.write_unit(0, activations.pop(), columns)
        end = time.monotonic() + 60
        while gone() is not None and time.monotonic() < end:
            time.sleep(0.01)
        held = gone() is not None
        slow_disk.set()
    assert not held

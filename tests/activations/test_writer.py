import errno
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from activations.store_cases import (
    GRADIENT,
    HOOK,
    WIDE,
    expected_rows,
    files_of,
    make_activations,
    make_columns,
    make_manifest,
    write_store,
)

from saelab.activations import space
from saelab.activations.arrays import write_arrays
from saelab.activations.format import SiteSpec
from saelab.activations.store import ActivationStore
from saelab.activations.verify import verify
from saelab.activations.writer import StoreWriter
from saelab.config import UsageError


@pytest.mark.parametrize("name", [HOOK, GRADIENT, WIDE])
@pytest.mark.parametrize("unit", [0, 1, 2])
def test_rows_stay_with_their_columns_at_every_site(store_path, name, unit):
    store = ActivationStore(store_path)
    start = sum(store.unit_rows[:unit])
    rows = store.site(name).rows(start, start + store.unit_rows[unit])
    assert torch.equal(rows, expected_rows(store.manifest, name, store.tokens(unit).token))


def test_columns_come_back_as_they_were_given(store_path):
    manifest = make_manifest()
    given, read = make_columns(manifest, 1), ActivationStore(store_path).tokens(1)
    order = np.argsort(read.token)
    for name in ("token", "position", "context", "document", "labels"):
        assert np.array_equal(getattr(read, name)[order], getattr(given, name))
    assert np.array_equal(read.contexts, given.contexts)
    assert read.excluded == given.excluded


def test_rows_are_shuffled_inside_a_unit(store_path):
    assert (np.diff(ActivationStore(store_path).tokens(0).token.astype(int)) < 0).any()


def test_writing_twice_gives_the_same_bytes(store_path, tmp_path):
    again = write_store(tmp_path / "again", make_manifest())
    assert files_of(again) == files_of(store_path)


def test_a_finished_store_has_no_missing_unit(store_path):
    with StoreWriter.create(store_path, make_manifest()) as writer:
        assert writer.missing_units() == []


def test_another_manifest_is_refused_and_the_field_named(store_path):
    with pytest.raises(UsageError, match="seed is 7 in the store, 8 asked"):
        StoreWriter.create(store_path, make_manifest(seed=8))


def test_other_sites_are_refused_by_their_names_alone(store_path):
    stored = make_manifest()
    first = stored.sites[0]
    sites = (first.model_copy(update={"hook": "blocks.7.hook_resid_post"}), *stored.sites[1:])
    with pytest.raises(UsageError) as caught:
        StoreWriter.create(store_path, stored.model_copy(update={"sites": sites}))
    told = f"the sites {first.name}, and only the command blocks.7.hook_resid_post."
    assert str(caught.value).endswith(told)


def test_a_directory_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        StoreWriter.create(tmp_path, make_manifest())


def test_a_committed_unit_is_never_rewritten(store_path):
    manifest = make_manifest()
    columns = make_columns(manifest, 0)
    with (
        StoreWriter.create(store_path, manifest) as writer,
        pytest.raises(UsageError, match="committed already"),
    ):
        writer.write_unit(0, make_activations(manifest, columns), columns)


def refused(tmp_path, activations=None, **columns_changes):
    """The message with which a unit with these changes is refused; nothing of it may stay."""
    manifest = make_manifest()
    columns = make_columns(manifest, 0)
    given = {**make_activations(manifest, columns), **(activations or {})}
    with StoreWriter.create(tmp_path / "s", manifest) as writer:
        before = files_of(tmp_path / "s")
        with pytest.raises(UsageError) as raised:
            writer.write_unit(0, given, replace(columns, **columns_changes))
        assert files_of(tmp_path / "s") == before
    return str(raised.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_with_site_and_count(tmp_path, value):
    x = torch.zeros(20, 5)
    x[3, 2] = x[7, 4] = value
    assert f"2 values of {WIDE}" in refused(tmp_path, {WIDE: x})


def test_values_beyond_float16_are_refused(tmp_path):
    x = torch.full((10, 2), 1e5)
    with pytest.raises(UsageError, match="20 values of a are beyond the range"):
        write_arrays(tmp_path / "s", {"a": x}, dtype="float16")


def test_shifted_columns_are_refused(tmp_path):
    token = np.roll(make_columns(make_manifest(), 0).token, 1)
    assert "another token than their context" in refused(tmp_path, token=token)


def test_a_position_that_occurs_twice_is_refused(tmp_path):
    columns = make_columns(make_manifest(), 0)
    doubled = {name: getattr(columns, name).copy() for name in ("token", "position", "context")}
    for values in doubled.values():
        values[1] = values[0]
    assert "occurs in two rows" in refused(tmp_path, **doubled)


def test_positions_that_nobody_accounts_for_are_refused(tmp_path):
    assert "4 positions have no row, but 3" in refused(tmp_path, excluded={"special": 3})


def test_contexts_of_another_unit_are_refused(tmp_path):
    manifest = make_manifest()
    assert "column context spans" in refused(tmp_path, context=make_columns(manifest, 1).context)


def test_a_wrong_width_is_refused(tmp_path):
    assert "has shape (20, 4), expected (20, 3)" in refused(tmp_path, {HOOK: torch.zeros(20, 4)})


def test_missing_labels_are_refused(tmp_path):
    assert "10 label names" in refused(tmp_path, labels=None)


def fail_at(monkeypatch, call, nth, number=errno.ENOSPC):
    """Let the nth call of an os function fail as a full disk does."""
    real, calls = getattr(os, call), []

    def failing(*args):
        calls.append(args)
        if len(calls) == nth:
            raise OSError(number, os.strerror(number))
        return real(*args)

    monkeypatch.setattr(os, call, failing)


FAILURES = [
    *(("posix_fallocate", nth, errno.ENOSPC) for nth in (1, 2, 3, 4)),
    *(("pwrite", nth, errno.ENOSPC) for nth in (1, 6, 11)),
    *(("fsync", nth, errno.EIO) for nth in (1, 4)),
]


@pytest.mark.parametrize(("call", "nth", "number"), FAILURES)
def test_a_failing_disk_leaves_committed_units_and_nothing_else(
    tmp_path, monkeypatch, call, nth, number
):
    manifest = make_manifest()
    columns = [make_columns(manifest, unit) for unit in range(3)]
    with StoreWriter.create(tmp_path / "s", manifest) as writer:
        writer.write_unit(0, make_activations(manifest, columns[0]), columns[0])
        before = files_of(tmp_path / "s")
        given = make_activations(manifest, columns[1])
        with monkeypatch.context() as patch:
            fail_at(patch, call, nth, number)
            with pytest.raises(OSError, match=os.strerror(number)):
                writer.write_unit(1, given, columns[1])
        assert files_of(tmp_path / "s") == before
        assert writer.missing_units() == [1, 2]
    write_store(tmp_path / "s", manifest)
    assert verify(tmp_path / "s") == []


def test_a_short_write_is_continued(tmp_path, monkeypatch, store_path):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:1000], offset))
    again = write_store(tmp_path / "again", make_manifest())
    assert files_of(again) == files_of(store_path)


def test_a_second_writer_is_refused_with_the_pid_of_the_first(tmp_path):
    with (
        StoreWriter.create(tmp_path / "s", make_manifest()),
        pytest.raises(UsageError, match=f"process {os.getpid()} on {socket.gethostname()}"),
    ):
        StoreWriter.create(tmp_path / "s", make_manifest())


def leave_lock(root, **owner):
    (root / "state").mkdir(parents=True, exist_ok=True)
    (root / "state" / "writer-0.lock").write_text(json.dumps(owner))


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    leave_lock(tmp_path / "s", host=socket.gethostname(), pid=dead_pid(), started="1")
    with StoreWriter.create(tmp_path / "s", make_manifest()) as writer:
        assert writer.missing_units() == [0, 1, 2]
    assert list((tmp_path / "s" / "state").iterdir()) == []


def test_the_lock_of_a_process_whose_pid_was_reused_is_taken_over(tmp_path):
    leave_lock(tmp_path / "s", host=socket.gethostname(), pid=os.getpid(), started="before")
    StoreWriter.create(tmp_path / "s", make_manifest()).close()


@pytest.mark.parametrize("owner", [{"host": "elsewhere", "pid": 1, "started": "1"}, {}])
def test_a_lock_that_cannot_be_judged_is_respected(tmp_path, owner):
    leave_lock(tmp_path / "s", **owner)
    with pytest.raises(UsageError, match=r"remove .*writer-0\.lock"):
        StoreWriter.create(tmp_path / "s", make_manifest())


@pytest.mark.parametrize("name", ["tokens/.000000.h5", ".manifest.json"])
def test_temporary_files_of_dead_writers_are_removed(store_path, name):
    left = store_path / f"{name}.host.{dead_pid()}.abcdef01.tmp"
    left.touch()
    StoreWriter.create(store_path, make_manifest()).close()
    assert not left.exists()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path):
    huge = make_manifest(
        sites=(SiteSpec(hook="a", d_in=2**20),), n_contexts=2**31, contexts_per_unit=2**20
    )
    with pytest.raises(UsageError, match=r"needs 54 PB, .* free"):
        StoreWriter.create(tmp_path / "s", huge)
    assert not (tmp_path / "s").exists()


def test_the_predicted_size_bounds_the_real_one(store_path):
    manifest = make_manifest()
    rows = ActivationStore(store_path).n_rows
    real = sum(len(data) for name, data in files_of(store_path).items() if name.endswith(".h5"))
    assert real <= space.predicted_bytes(manifest, rows) <= real + 16 * 1024 * 12


def test_a_finished_store_needs_no_space(store_path):
    assert space.require_space(store_path, make_manifest()) == 0


def test_arrays_of_different_lengths_are_refused(tmp_path):
    with pytest.raises(UsageError, match="a: 3, b: 4"):
        write_arrays(tmp_path / "s", {"a": torch.zeros(3, 1), "b": torch.zeros(4, 1)})


def test_a_memory_mapped_array_becomes_a_store_with_its_labels(tmp_path):
    x = np.arange(40, dtype=np.float64).reshape(20, 2)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    even = np.arange(20) % 2 == 0
    write_arrays(tmp_path / "s", {"mine": mapped}, labels={"even": even}, rows_per_unit=8)
    store = ActivationStore(tmp_path / "s")
    rows, labels = store.site("mine").rows(0, 8), store.tokens(0).labels
    assert labels is not None
    assert np.array_equal(rows[:, 0] % 4 == 0, labels[:, 0])
    assert (store.n_rows, verify(tmp_path / "s")) == (20, [])

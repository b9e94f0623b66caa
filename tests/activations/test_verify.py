import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from activations.store_cases import (
    make_columns,
    make_manifest,
    overwrite,
    write_store,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saelab.activations.arrays import write_arrays
from saelab.activations.format import hook_path, tokens_path
from saelab.activations.hook_file import hook_file
from saelab.activations.prepare import RowPreparer
from saelab.activations.sealed import SealedFile, write_parts
from saelab.activations.summing import column_sums
from saelab.activations.tokens_file import tokens_file
from saelab.activations.verify import verify
from saelab.activations.writer import StoreWriter
from saelab.config import UsageError
from saelab.formats.json_file import canonical_digest

repeated = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def tiny_path(tmp_path):
    """One unit of one site."""
    return write_store(
        tmp_path / "tiny", make_manifest(sites=make_manifest().sites[:1], n_contexts=4)
    )


def rewrite(path, parts):
    path.unlink()
    write_parts(path, parts)


def store_files(root):
    return sorted(path for path in root.rglob("*") if path.is_file())


def named(root, *, full=True):
    return [damage.file for damage in verify(root, full=full)]


def test_a_whole_store_has_no_damage(store_path):
    assert verify(store_path) == []


@repeated
@given(st.data())
def test_any_flipped_byte_is_found_and_its_file_named(tiny_path, data):
    path = data.draw(st.sampled_from(store_files(tiny_path)))
    good = path.read_bytes()
    bad = bytearray(good)
    # Half of the draws hit the last bytes, where trailer and seal are.
    place = data.draw(st.integers(0, len(bad) - 1) | st.integers(len(bad) - 104, len(bad) - 1))
    bad[place] ^= data.draw(st.integers(1, 255))
    overwrite(path, bytes(bad))
    try:
        assert str(path.relative_to(tiny_path)) in named(tiny_path)
    finally:
        overwrite(path, good)


@repeated
@given(st.data())
def test_any_truncation_or_extension_is_found(tiny_path, data):
    path = data.draw(st.sampled_from(store_files(tiny_path)))
    good = path.read_bytes()
    keep = data.draw(st.integers(0, len(good)))
    grow = data.draw(st.binary(min_size=1, max_size=200))
    overwrite(path, good[:keep] if keep < len(good) else good + grow)
    try:
        assert str(path.relative_to(tiny_path)) in named(tiny_path)
    finally:
        overwrite(path, good)


def test_every_part_of_a_file_is_covered(tiny_path):
    """HDF5 metadata, attributes, checksums, padding, payload, trailer and seal of one file."""
    path = hook_path(tiny_path, make_manifest().sites[0], 0)
    good = path.read_bytes()
    missed = []
    for place in range(0, len(good), 149):
        overwrite(path, good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :])
        if not verify(tiny_path):
            missed.append(place)
    assert missed == []


def test_a_missing_hook_file_is_named(store_path):
    path = hook_path(store_path, make_manifest().sites[2], 1)
    path.unlink()
    assert named(store_path) == [str(path.relative_to(store_path))]


def test_missing_units_are_named_by_their_first_file(tmp_path):
    path = write_store(tmp_path / "s", make_manifest(n_contexts=24))
    for unit in (1, 2, 5):
        tokens_path(path, unit).unlink()
    assert named(path) == ["tokens/000001.h5", "tokens/000005.h5"]


def test_swapped_units_are_both_named(store_path):
    site = make_manifest().sites[0]
    first, second = hook_path(store_path, site, 0), hook_path(store_path, site, 1)
    first.rename(store_path / "aside")
    second.rename(first)
    (store_path / "aside").rename(second)
    assert named(store_path) == [str(path.relative_to(store_path)) for path in (first, second)]


def test_a_file_of_another_site_is_named(store_path):
    sites = make_manifest().sites
    mine, gradient = (hook_path(store_path, site, 0) for site in sites[:2])
    overwrite(mine, gradient.read_bytes())
    assert named(store_path) == [str(mine.relative_to(store_path))]


def test_files_that_do_not_belong_are_named(store_path):
    for name in ("tokens/000009.h5.bak", "hooks/blocks.1.hook_resid_post/0.h5", "hooks/other"):
        (store_path / name).touch()
    assert sorted(named(store_path)) == [
        "hooks/blocks.1.hook_resid_post/0.h5",
        "hooks/other",
        "tokens/000009.h5.bak",
    ]


def prepared(rows):
    return RowPreparer("float32").prepare(rows, np.arange(len(rows)))


def test_a_hook_file_of_another_run_of_the_same_harvest_is_named(store_path):
    """Same manifest and unit, other values: only the seal in the commit marker tells."""
    manifest = make_manifest()
    site = manifest.sites[0]
    rows = torch.ones(20, site.d_in)
    parts, _ = hook_file(manifest, site, 0, prepared(rows))
    path = hook_path(store_path, site, 0)
    rewrite(path, parts)
    (damage,) = verify(store_path)
    assert "not the file that was written with its tokens file" in damage.problem


def test_misaligned_columns_are_found_under_a_valid_seal(store_path):
    manifest = make_manifest()
    columns = make_columns(manifest, 0)
    shifted = columns.permuted(np.arange(20))
    object.__setattr__(shifted, "token", np.roll(columns.token, 1))
    rewrite(tokens_path(store_path, 0), tokens_file(manifest, 0, shifted, [bytes(32)] * 3))
    assert any("misaligned" in damage.problem for damage in verify(store_path))


def test_statistics_of_other_rows_are_found_under_valid_seals(tiny_path):
    manifest = make_manifest(sites=make_manifest().sites[:1], n_contexts=4)
    columns = make_columns(manifest, 0)
    wrong = replace(prepared(torch.ones(20, 3)), sums=column_sums(torch.zeros(20, 3)))
    parts, seal = hook_file(manifest, manifest.sites[0], 0, wrong)
    rewrite(hook_path(tiny_path, manifest.sites[0], 0), parts)
    rewrite(tokens_path(tiny_path, 0), tokens_file(manifest, 0, columns, [seal]))
    (damage,) = verify(tiny_path)
    assert "statistics" in damage.problem


def test_a_quick_check_reads_headers_but_not_the_rows(store_path):
    path = hook_path(store_path, make_manifest().sites[0], 0)
    with SealedFile(path) as file:
        start = file.trailer.payload_offset
    data = bytearray(path.read_bytes())
    data[start] ^= 1
    overwrite(path, bytes(data))
    assert named(store_path, full=False) == []
    assert named(store_path) == [str(path.relative_to(store_path))]


def test_a_manifest_rewritten_with_a_valid_seal_makes_every_file_foreign(store_path):
    path = store_path / "manifest.json"
    fields = json.loads(path.read_text())
    fields["seed"] += 1
    fields["sha256"] = canonical_digest({k: v for k, v in fields.items() if k != "sha256"})
    path.write_text(json.dumps(fields, indent=2) + "\n")
    assert len(verify(store_path)) == 12


def test_an_interrupted_store_is_not_whole(tmp_path):
    StoreWriter.create(tmp_path / "s", make_manifest()).close()
    assert named(tmp_path / "s") == ["tokens/000000.h5"]


def test_progress_adds_up_to_the_size_of_all_files(store_path):
    sizes = []
    verify(store_path, progress=sizes.append)
    expected = [path.stat().st_size for path in store_files(store_path) if path.suffix == ".h5"]
    assert sum(sizes) == sum(expected)


def test_a_directory_without_store_is_a_mistake_of_the_caller(tmp_path):
    with pytest.raises(UsageError, match="no activation store"):
        verify(tmp_path)


def test_large_means_do_not_look_like_wrong_statistics(tmp_path):
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * 1e-3 + 1e4
    assert verify(write_arrays(tmp_path / "s", {"a": x})) == []


def test_a_copied_store_is_whole(store_path, tmp_path):
    shutil.copytree(store_path, tmp_path / "copy")
    assert verify(tmp_path / "copy") == []

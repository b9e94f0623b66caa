import h5py
import numpy as np
import pytest
import torch
from activations.store_cases import make_manifest

from saelab.activations.arrays import write_arrays
from saelab.activations.checks import read_dataset
from saelab.activations.format import SiteSpec, hook_path
from saelab.activations.hook_file import hook_file
from saelab.activations.prepare import PreparedRows
from saelab.activations.sealed import write_parts
from saelab.activations.statistics import ColumnSums
from saelab.activations.store import ActivationStore
from saelab.activations.tensor_rows import TORCH, raw_bytes, rows_from_bytes

ALL_PATTERNS = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)


def finite(patterns):
    return patterns[torch.isfinite(patterns.view(torch.bfloat16))]


def as_float32(patterns):
    """bfloat16 is the upper half of a float32."""
    return (patterns.numpy().astype(np.uint16).astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_all_65536_half_precision_patterns_keep_their_bits(dtype):
    rows = ALL_PATTERNS.view(TORCH[dtype]).view(-1, 64)
    raw = torch.frombuffer(bytearray(raw_bytes(rows)), dtype=torch.uint8)
    back = rows_from_bytes(raw, dtype, 64)
    assert torch.equal(back.view(torch.int16), rows.view(torch.int16))


def test_plain_h5py_reads_all_65536_bfloat16_patterns_as_their_true_values(tmp_path):
    manifest = make_manifest(sites=(SiteSpec(hook="a", d_in=64),), dtype="bfloat16")
    rows = ALL_PATTERNS.view(torch.bfloat16).view(-1, 64)
    sums = ColumnSums(1024, np.zeros(64), np.zeros(64), 0.0)
    norms = np.ones(1024, dtype=np.float32)
    prepared = PreparedRows(rows, np.zeros(1, dtype=np.uint64), sums, norms)
    write_parts(tmp_path / "file.h5", hook_file(manifest, manifest.sites[0], 0, prepared)[0])
    with h5py.File(tmp_path / "file.h5") as file:
        assert np.array_equal(
            read_dataset(file, "acts").ravel(), as_float32(ALL_PATTERNS), equal_nan=True
        )


def test_negative_bfloat16_values_survive_the_store(tmp_path):
    values = finite(ALL_PATTERNS).view(torch.bfloat16).view(-1, 1)
    write_arrays(tmp_path / "s", {"a": values}, dtype="bfloat16")
    rows = ActivationStore(tmp_path / "s").site("a").rows(0, len(values))
    assert torch.equal(rows.sort(0)[0], values.float().sort(0)[0])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_stored_values_are_the_inputs_rounded_once(tmp_path, dtype):
    x = torch.randn(3000, 5, generator=torch.Generator().manual_seed(0))
    write_arrays(tmp_path / "s", {"a": x}, dtype=dtype, rows_per_unit=1100)
    store = ActivationStore(tmp_path / "s")
    order = np.concatenate([store.tokens(unit).context for unit in store.units]).astype(np.int64)
    expected = x.to(getattr(torch, dtype)).float()[torch.from_numpy(order)]
    assert torch.equal(store.site("a").rows(0, 3000), expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_plain_h5py_reads_what_the_store_reads(tmp_path, dtype):
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    write_arrays(tmp_path / "s", {"a": x}, dtype=dtype)
    store = ActivationStore(tmp_path / "s")
    with h5py.File(hook_path(store.path, store.manifest.sites[0], 0)) as file:
        assert np.array_equal(
            read_dataset(file, "acts").astype(np.float32), store.site("a").rows(0, 50)
        )


def test_payload_starts_at_a_page(tmp_path):
    write_arrays(tmp_path / "s", {"a": torch.ones(10, 3)})
    with h5py.File(tmp_path / "s" / "hooks" / "a" / "000000.h5") as file:
        assert file["acts"].id.get_offset() % 4096 == 0

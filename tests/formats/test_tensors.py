"""Safetensors files: other tools read them, no change goes unseen, no header is believed."""

import json
import struct

import numpy as np
import pytest
import torch
from bounded import at_most
from safetensors import safe_open
from safetensors.torch import save_file

from saelab.config import UsageError
from saelab.formats.tensor_header import read_matrix
from saelab.formats.tensors import read_tensor_header, read_tensors, write_tensors


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "b": torch.randn(3, 5, generator=generator),
        "a": torch.randn(2, generator=generator, dtype=torch.float64),
        "half": torch.randn(7, generator=generator).bfloat16(),
        "flags": torch.tensor([True, False, True]),
        "count": torch.tensor(7),
        "none": torch.zeros(0, 4),
    }


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, tensors(), {"z": "1", "a": "é"})
    return path


def test_the_library_of_the_format_reads_what_is_written(path):
    with safe_open(path, framework="pt") as file:
        assert file.metadata().items() >= {"z": "1", "a": "é"}.items()
        assert set(file.keys()) == set(tensors())
        for name, value in tensors().items():
            assert torch.equal(file.get_tensor(name), value)


def test_tensors_come_back_and_equal_ones_give_equal_bytes(path):
    header = read_tensor_header(path)
    assert header.sealed
    assert header.metadata == {"z": "1", "a": "é"}
    found = read_tensors(header)
    for name, value in tensors().items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype == header.tensors[name].dtype
    before = path.read_bytes()
    write_tensors(path, dict(reversed(tensors().items())), {"a": "é", "z": "1"})
    assert path.read_bytes() == before


def test_what_the_library_writes_is_read_without_a_seal(path):
    save_file(tensors(), path)
    header = read_tensor_header(path)
    assert not header.sealed
    assert torch.equal(read_tensors(header)["b"], tensors()["b"])


def test_no_changed_byte_goes_unseen(path):
    whole = path.read_bytes()
    name = whole.index(b'"seal"')
    # Without that name a file is one of before, and nothing of it is changed.
    for place in {*range(0, len(whole), 3)} - {*range(name, name + 6)}:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match=r"x\.safetensors"):
            read_tensors(read_tensor_header(path))
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(UsageError, match=r"x\.safetensors"):
            read_tensors(read_tensor_header(path))


def entry(**changes):
    return {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes


HEADERS = {
    "no object": [1],
    "an unknown type": {"x": entry(dtype="F4")},
    "more than there is": {"x": entry(shape=[10**6, 10**6], data_offsets=[0, 4 * 10**12])},
    "another size": {"x": entry(shape=[10**9, 10**9])},
    "a negative size": {"x": entry(shape=[-2, -2])},
    "no whole number": {"x": entry(shape=[2.0, 2])},
    "a truth value": {"x": entry(shape=[True, 4])},
    "a gap": {"x": entry(shape=[3], data_offsets=[4, 16])},
    "an overlap": {"x": entry(), "y": entry(shape=[1], data_offsets=[12, 16])},
    "bytes left over": {"x": entry(shape=[3], data_offsets=[0, 12])},
    "no place": {"x": {"dtype": "F32", "shape": [2, 2]}},
    "many axes": {"x": entry(shape=[2, 2] + [1] * 60)},
    "no texts": {"x": entry(), "__metadata__": {"a": 1}},
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_a_header_that_does_not_fit_its_file_is_refused_before_anything_is_made(tmp_path, header):
    raw = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(16))
    with at_most(100), pytest.raises(UsageError, match=r"x\.safetensors") as caught:
        read_tensor_header(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


def test_a_header_longer_than_its_file_or_than_any_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    for n in (0, 100, 2**63, 2**64 - 1):
        path.write_bytes(struct.pack("<Q", n) + b"{}")
        with pytest.raises(UsageError, match="header is not all there"):
            read_tensor_header(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named_unless_it_may_be(path, value):
    bad = tensors()
    bad["b"][2, 1] = value
    write_tensors(path, bad, {})
    header = read_tensor_header(path)
    with pytest.raises(UsageError, match="b holds NaN or infinite numbers"):
        read_tensors(header)
    assert not read_tensors(header, finite=["a"])["b"].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_matrix_is_read_without_torch_as_torch_reads_it(path, dtype):
    value = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    write_tensors(path, {"first": torch.zeros(5), "W_dec": value}, {})
    assert np.array_equal(read_matrix(read_tensor_header(path), "W_dec"), value.float().numpy())
    for other in ("first", "no"):
        with pytest.raises(UsageError, match="has no matrix"):
            read_matrix(read_tensor_header(path), other)
    write_tensors(path, {"W_dec": torch.zeros(2, 2, dtype=torch.int32)}, {})
    with pytest.raises(UsageError, match="W_dec does not hold floating-point numbers but int32"):
        read_matrix(read_tensor_header(path), "W_dec")

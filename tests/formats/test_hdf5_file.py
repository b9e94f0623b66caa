"""HDF5 files of a run: HDF5 tools read them, no change goes unseen, libhdf5 is not trusted."""

import hashlib
import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
from bounded import at_most
from old_hdf5 import as_before

from saelab.config import UsageError
from saelab.formats import hdf5_file
from saelab.formats.hdf5_file import MAGIC, TAIL, check_hdf5, read_hdf5, write_hdf5


def arrays():
    return {
        "a/counts": np.arange(10, dtype=np.int64),
        "a/none": np.zeros((0, 3), dtype=np.float16),
        "b/values": np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32),
        "b/one": np.array(3.5),
    }


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.h5"
    write_hdf5(path, arrays(), {"n": 1, "text": "é"})
    return path


@pytest.mark.parametrize("before", [False, True], ids=["sealed", "before"])
def test_what_was_written_comes_back(path, before):
    if before:
        with as_before(path):
            pass
    found = read_hdf5(path)
    assert found.sealed is not before
    assert found.facts == {"n": 1, "text": "é"}
    assert found.keys() == arrays().keys()
    for name, values in arrays().items():
        assert np.array_equal(found[name], values)
        assert found[name].dtype == values.dtype
        assert found.kind(name) == (values.dtype.kind, values.shape)
    check_hdf5(found)


def test_hdf5_tools_read_the_file_and_equal_arrays_give_equal_bytes(path):
    with h5py.File(path) as h5:
        for name, values in arrays().items():
            dataset = h5[name]
            assert isinstance(dataset, h5py.Dataset)
            assert np.array_equal(dataset[()], values)
    whole = path.read_bytes()
    write_hdf5(path, arrays(), {"n": 1, "text": "é"})
    assert path.read_bytes() == whole


def test_no_changed_byte_goes_unseen_and_none_reaches_libhdf5(path, monkeypatch):
    whole = path.read_bytes()

    def never(*_):
        raise UsageError("x.h5 was handed to libhdf5")

    monkeypatch.setattr(hdf5_file, "_index_of_old", never)
    for place in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match=r"x\.h5") as caught:
            check_hdf5(read_hdf5(path))
        # Only without the magic at its end can a file be one of before.
        handed = "libhdf5" in str(caught.value)
        assert handed == (len(whole) - TAIL.size <= place < len(whole) - TAIL.size + len(MAGIC))


def test_a_file_without_the_end_of_its_index_is_cut_off_and_not_one_of_before(path):
    whole = path.read_bytes()
    for end in (len(whole) - 1, len(whole) - TAIL.size - 5, len(whole) // 2, 600, 8, 0):
        path.write_bytes(whole[:end])
        with pytest.raises(UsageError, match=r"is not a whole HDF5 file"):
            read_hdf5(path)


def test_an_array_that_was_altered_is_named_when_it_is_used(path):
    damaged = bytearray(path.read_bytes())
    place = damaged.index(arrays()["b/values"].tobytes())
    damaged[place + 5] ^= 1
    path.write_bytes(damaged)
    found = read_hdf5(path)
    assert found["a/counts"][3] == 3
    with pytest.raises(UsageError, match="b/values does not match its checksum"):
        found["b/values"]


def forged(path, change):
    """The file with an index that somebody changed, and sealed again."""
    raw = path.read_bytes()
    _, n, _ = TAIL.unpack(raw[-TAIL.size :])
    end = len(raw) - TAIL.size - n
    index = json.loads(raw[end : -TAIL.size])
    change(index)
    text = json.dumps(index).encode()
    path.write_bytes(raw[:end] + text + TAIL.pack(MAGIC, len(text), hashlib.sha256(text).digest()))


FORGED = {
    "huge": {"shape": [2**31, 2**31]},
    "long": {"shape": [10**18]},
    "negative": {"shape": [-10]},
    "axes": {"shape": [1] * 40},
    "outside": {"offset": 10**9},
    "before": {"offset": -8},
    "objects": {"dtype": "|O8"},
    "text": {"dtype": "<U4"},
    "no type": {"dtype": None},
    "no offset": {"offset": "0"},
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED.keys())
def test_an_index_with_a_right_seal_is_not_believed(path, change):
    forged(path, lambda index: index["arrays"]["a/counts"].update(change))
    with at_most(100), pytest.raises(UsageError, match="is not a whole HDF5 file: 'a/counts'"):
        read_hdf5(path)


def test_old_files_are_read_without_links_filters_or_other_files(tmp_path):
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as h5:
        h5["x"] = np.arange(3)
    layout = h5py.VirtualLayout((3,), "i8")
    layout[:] = h5py.VirtualSource(other, "x", (3,))
    makers = {
        "is a link": lambda h5: h5.__setitem__("a/x", h5py.ExternalLink(other, "/x")),
        "a is a link": lambda h5: h5.__setitem__("a", h5py.SoftLink("/a")),
        "contiguously": lambda h5: h5.create_virtual_dataset("a/x", layout),
        "stored contiguously": lambda h5: h5.create_dataset(
            "a/x", (2**34,), "u1", chunks=(2**20,), compression="gzip"
        ),
        "not stored": lambda h5: h5.create_dataset(
            "a/x", (4,), "i8", external=[("/etc/passwd", 0, 32)]
        ),
        "numeric": lambda h5: h5.create_dataset("a/x", data="text"),
        "numeric dataset": lambda h5: h5.create_dataset("a/x", data=True),
        "not a group": lambda h5: h5.create_dataset("x", data=1),
        "is not a numeric": lambda h5: h5.create_group("a/b/c"),
    }
    for message, make in makers.items():
        path = tmp_path / "x.h5"
        with h5py.File(path, "w") as h5:
            h5.attrs["facts"] = "{}"
            make(h5)
        with pytest.raises(UsageError, match=message):
            read_hdf5(path)


def test_a_reader_of_old_files_that_does_not_end_is_ended(tmp_path, monkeypatch):
    loop = tmp_path / "loop.py"
    loop.write_text("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 1))\nwhile 1: 1")
    monkeypatch.setattr(hdf5_file.hdf5_without_index, "__file__", str(loop))
    (tmp_path / "x.h5").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="reading it does not end"):
        read_hdf5(tmp_path / "x.h5")


def test_old_files_are_read_in_two_seconds_of_a_core_and_half_a_gigabyte(tmp_path):
    """The limits hold for what libhdf5 does, since they are set before it opens the file."""
    code = (
        "import resource, h5py, sys; from saelab.formats import hdf5_without_index as reader\n"
        "class Greedy:\n"
        "    def __init__(self, *_, **__): self.held = bytearray(2**30)\n"
        "reader.h5py.File = Greedy\n"
        "try: reader.main('x')\n"
        "except MemoryError: print('refused', resource.getrlimit(resource.RLIMIT_CPU)[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    word, seconds = done.stdout.split()
    assert word == "refused"
    assert int(seconds) <= 60

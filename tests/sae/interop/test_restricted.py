"""Untrusted files: no code runs, no memory is given for claims, every refusal is one sentence."""

import os
import zipfile

import numpy as np
import pytest
import torch
from sae.interop.cases import Payload, refusal
from safetensors.torch import save_file

from saelab.sae.interop import restricted


@pytest.mark.parametrize("place", ["value", "whole", "deep"])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(place, zipped, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "ae.pt"
    evil = Payload(marker)
    saved = {"value": {"a": torch.zeros(2), "b": evil}, "whole": evil, "deep": {"a": [[evil]]}}
    torch.save(saved[place], path, _use_new_zipfile_serialization=zipped)
    text = refusal(lambda: restricted.load_pt(path))
    assert not marker.exists()
    assert str(path) in text
    if zipped:
        assert "asks for posix.mkdir, and nothing but tensors is read" in text
    torch.load(path, weights_only=False)  # noqa: TID251 - the payload would have worked
    assert marker.exists()


def test_a_pickle_without_an_archive_is_not_run(tmp_path):
    path = tmp_path / "ae.pt"
    path.write_bytes(b"cposix\nmkdir\n(V" + str(tmp_path / "marker").encode() + b"\ntR.")
    assert "is not a whole file of torch.save" in refusal(lambda: restricted.load_pt(path))
    assert not (tmp_path / "marker").exists()


def test_a_state_dict_is_read_with_its_types(tmp_path):
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3).T,
        "b": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
        "k": torch.tensor(3, dtype=torch.int32),
    }
    torch.save(tensors, tmp_path / "ae.pt")
    read = restricted.load_pt(tmp_path / "ae.pt").tensors
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)
        assert read[name].dtype == tensor.dtype
        assert not read[name].requires_grad
    module = torch.nn.Linear(2, 3)
    torch.save(module.state_dict(), tmp_path / "module.pt")
    assert torch.equal(restricted.load_pt(tmp_path / "module.pt").tensors["bias"], module.bias)


def test_what_is_read_does_not_depend_on_the_file_any_more(tmp_path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "ae.pt")
    read = restricted.load_pt(tmp_path / "ae.pt").tensors["a"]
    with (tmp_path / "ae.pt").open("r+b") as file:
        file.write(b"\0" * (tmp_path / "ae.pt").stat().st_size)
    assert bool((read == 1).all())


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ([torch.zeros(2)], "holds a list"),
        (torch.zeros(2), "holds a Tensor"),
        ({"a": {"b": torch.zeros(2)}}, "'a' names a dict"),
        ({"a": 3}, "'a' names a int"),
        ({3: torch.zeros(2)}, "3 names a Tensor"),
        ({"a": torch.zeros(2).to_sparse()}, "not plain"),  # Not every torch reads it at all.
        ({"a": torch.zeros(2, device="meta")}, "'a' names a Tensor that is not plain"),
        ({"a": bytearray(10)}, "'a' names a bytearray"),
    ],
)
def test_anything_but_a_flat_table_of_plain_tensors_is_refused(saved, words, tmp_path):
    torch.save(saved, tmp_path / "ae.pt")
    assert words in refusal(lambda: restricted.load_pt(tmp_path / "ae.pt"))


def test_a_tensor_larger_than_its_file_is_refused_before_it_is_copied(tmp_path):
    torch.save({"a": torch.zeros(1).expand(10**7, 10**7)}, tmp_path / "ae.pt")
    assert "unpack to 400000000000000" in refusal(lambda: restricted.load_pt(tmp_path / "ae.pt"))


def rewrite(source, target, compression=zipfile.ZIP_STORED, **changes):
    """A copy of an archive whose members, by the ends of their names, are changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for info in old.infolist():
            data = old.read(info)
            for end, change in changes.items():
                data = change(data) if info.filename.endswith(end) else data
            new.writestr(info.filename, data)


def test_a_storage_that_claims_more_than_its_record_is_refused(tmp_path):
    torch.save({"a": torch.zeros(4)}, tmp_path / "old.pt")
    sixteen_thousand = b"M\x00\x40"
    rewrite(
        tmp_path / "old.pt",
        tmp_path / "ae.pt",
        pkl=lambda pickled: pickled.replace(b"K\x04", sixteen_thousand),
    )
    assert "is not a table of tensors" in refusal(lambda: restricted.load_pt(tmp_path / "ae.pt"))


def test_a_compressed_state_dict_is_refused(tmp_path):
    torch.save({"a": torch.zeros(4)}, tmp_path / "old.pt")
    rewrite(tmp_path / "old.pt", tmp_path / "ae.pt", zipfile.ZIP_DEFLATED)
    assert "is compressed" in refusal(lambda: restricted.load_pt(tmp_path / "ae.pt"))


@pytest.mark.parametrize("keep", [0, 10, 500, -10])
def test_a_truncated_state_dict_is_refused(keep, tmp_path):
    path = tmp_path / "ae.pt"
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    assert "is not a whole file of torch.save" in refusal(lambda: restricted.load_pt(path))


def test_arrays_are_read_as_float32_whatever_their_width(tmp_path):
    arrays = {
        "f16": np.ones(2, np.float16),
        "big": np.arange(3, dtype=">f8"),
        "columns": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    }
    np.savez(tmp_path / "plain.npz", **arrays)
    np.savez_compressed(tmp_path / "packed.npz", **arrays)
    for name in ("plain.npz", "packed.npz"):
        read = restricted.load_npz(tmp_path / name).tensors
        for key, array in arrays.items():
            assert read[key].dtype == torch.float32
            assert read[key].tolist() == array.tolist()


def test_an_array_with_a_header_of_the_second_version_is_read(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "params.npz", "w") as archive,
        archive.open("a.npy", "w") as out,
    ):
        np.lib.format.write_array(out, np.arange(3.0), version=(2, 0))
    assert restricted.load_npz(tmp_path / "params.npz").tensors["a"].tolist() == [0, 1, 2]


def test_objects_in_an_npz_are_not_unpickled(tmp_path):
    array = np.array([Payload(tmp_path / "marker")], dtype=object)
    np.savez(tmp_path / "params.npz", a=array)
    refusal(lambda: restricted.load_npz(tmp_path / "params.npz"))
    assert not (tmp_path / "marker").exists()
    with np.load(tmp_path / "params.npz", allow_pickle=True) as archive:
        assert len(archive["a"]) == 1  # the payload would have worked
    assert (tmp_path / "marker").exists()


def test_an_array_that_claims_more_than_it_has_is_refused(tmp_path):
    np.savez(tmp_path / "old.npz", a=np.zeros((2, 3)))
    rewrite(
        tmp_path / "old.npz",
        tmp_path / "params.npz",
        npy=lambda data: data.replace(b"(2, 3), }          ", b"(2, 30000000000), }"),
    )
    text = refusal(lambda: restricted.load_npz(tmp_path / "params.npz"))
    assert "'a.npy' claims shape [2, 30000000000]" in text


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "params.npz", a=np.zeros(2_000_000))
    assert "would unpack to 16000" in refusal(lambda: restricted.load_npz(tmp_path / "params.npz"))


@pytest.mark.parametrize("array", [np.arange(3), np.array(["x"]), np.zeros(2, np.complex64)])
def test_arrays_that_are_no_floats_are_refused(array, tmp_path):
    np.savez(tmp_path / "params.npz", a=array)
    assert "'a' does not hold" in refusal(lambda: restricted.load_npz(tmp_path / "params.npz"))


@pytest.mark.parametrize("keep", [0, 10, 300, -10])
def test_a_truncated_npz_is_refused(keep, tmp_path):
    path = tmp_path / "params.npz"
    np.savez(path, a=np.zeros(1000))
    path.write_bytes(path.read_bytes()[:keep])
    assert "is not a whole .npz archive" in refusal(lambda: restricted.load_npz(path))


@pytest.mark.parametrize("keep", [0, 5, -4])
def test_a_truncated_safetensors_file_is_refused(keep, tmp_path):
    path = tmp_path / "sae.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    assert "not a whole safetensors file" in refusal(lambda: restricted.load_safetensors(path))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[1]",
        b'"x"',
        b"null",
        b"\xff\xfe{}",
        b'{"k": ' + b"9" * 5000 + b"}",
        b'{"k": ' * 100_000,
        b"[" * 100_000,
    ],
    ids=["empty", "open", "list", "string", "null", "bytes", "digits", "deep", "deeper"],
)
def test_json_that_is_no_object_is_refused(text, tmp_path):
    (tmp_path / "cfg.json").write_bytes(text)
    said = refusal(lambda: restricted.load_json(tmp_path / "cfg.json"))
    assert "JSON" in said or "is not UTF-8" in said


def test_a_configuration_of_megabytes_is_refused_unread(tmp_path):
    with (tmp_path / "cfg.json").open("wb") as file:
        file.truncate(10**12)
    text = refusal(lambda: restricted.load_json(tmp_path / "cfg.json"))
    assert "has 1,000,000,000,000 bytes" in text


READERS = [
    restricted.load_json,
    restricted.load_safetensors,
    restricted.load_npz,
    restricted.load_pt,
]


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_only_regular_files_are_opened(read, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is not a regular file" in refusal(lambda: read(tmp_path / "pipe"))
    assert "is not a regular file" in refusal(lambda: read(tmp_path))
    assert "gone does not exist" in refusal(lambda: read(tmp_path / "gone"))

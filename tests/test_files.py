"""Files are whole or absent."""

import json

import pytest

from saelab.files import atomic_write, atomic_write_json, create_file, replace_file, sha256_file


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "value.json"
    atomic_write(path, b"old")

    def fail(file):
        file.write(b"half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        replace_file(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_a_file_is_created_by_the_first_who_tries(tmp_path):
    create_file(tmp_path / "manifest.json", b"first")
    create_file(tmp_path / "manifest.json", b"second")
    assert (tmp_path / "manifest.json").read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_missing_directories_are_made(tmp_path):
    atomic_write_json(tmp_path / "a" / "b.json", {"x": 1})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"x": 1}


def test_nan_is_refused_in_json(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        atomic_write_json(tmp_path / "bad.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_sha256_is_that_of_the_bytes(tmp_path):
    atomic_write(tmp_path / "empty", b"")
    assert sha256_file(tmp_path / "empty").startswith("e3b0c44298fc1c14")

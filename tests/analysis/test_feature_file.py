"""The file is mapped as it lies on disk, and files from elsewhere are not trusted."""

import h5py
import numpy as np
import pytest
from old_hdf5 import as_before

from saelab.analysis.feature_file import FeatureFile, pack_vocabulary, write_features
from saelab.config import UsageError
from saelab.formats.hdf5_file import write_hdf5


@pytest.fixture
def path(tmp_path):
    return tmp_path / "features.h5"


def test_what_was_written_is_mapped(path):
    values = np.arange(12, dtype=np.int16).reshape(3, 4)
    write_features(path, {"top/context": values, "top/value": values[:0]}, {"seed": 3})
    file = FeatureFile(path)
    assert file["top/context"].tolist() == values.tolist()
    assert file["top/value"].shape == (0, 4)
    assert file.facts["seed"] == 3
    assert file.kinds == ("top",)
    with pytest.raises(ValueError, match="read-only"):
        file["top/context"][0, 0] = 1


def test_external_links_and_compressed_datasets_are_refused(path):
    write_features(path, {"latent/n_fired": np.zeros(3)}, {})
    with as_before(path) as h5:
        h5["latent/elsewhere"] = h5py.ExternalLink("/etc/hosts", "/")
    with pytest.raises(UsageError, match="elsewhere is a link"):
        FeatureFile(path)
    with as_before(path) as h5:
        del h5["latent/elsewhere"]
        h5.create_dataset("latent/packed", data=np.zeros(9), compression="gzip")
    with pytest.raises(UsageError, match="not stored contiguously"):
        FeatureFile(path)


def test_a_truncated_file_is_refused(path):
    write_features(path, {"latent/n_fired": np.zeros(3000)}, {})
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(UsageError, match=r"features\.h5"):
        FeatureFile(path)


def test_a_file_of_the_first_format_says_what_makes_a_new_one(path):
    write_hdf5(path, {"latent/n_fired": np.zeros(3)}, {"format": "saelab-features/1"})
    with pytest.raises(UsageError, match=r"features/1'.*run `saelab features` again"):
        FeatureFile(path)


def test_pieces_of_characters_survive_with_their_bytes(path):
    names = [" a", "<0xF0><0x9F>", "<0x98>", "<0x80>", "<no token 4>"]
    said = {1: b"\xf0\x9f", 2: b"\x98", 3: b"\x80"}
    write_features(path, pack_vocabulary(names, said), {})
    file = FeatureFile(path)
    assert [file.token(i) for i in range(5)] == names
    assert file.table.pieces([0, 1, 2, 3, 0, 3]) == [" a", "😀", "", "", " a", "<0x80>"]
    # A file of before has names only.
    write_features(path, pack_vocabulary(names), {})
    assert FeatureFile(path).table.pieces([1, 2]) == names[1:3]


def test_the_vocabulary_survives_and_half_a_character_shows_as_a_replacement(path):
    tokens = ["", " a", "é", "\n", "日本"]
    arrays = pack_vocabulary(tokens)
    write_features(path, arrays, {})
    assert FeatureFile(path).vocabulary == tokens
    arrays["vocabulary/offsets"] = np.array([0, 3, 4])
    write_features(path, arrays, {})
    assert FeatureFile(path).token(0) == " a\ufffd"

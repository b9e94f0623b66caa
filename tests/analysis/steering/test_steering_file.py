"""steering.h5 may come from anywhere: what is not whole is refused."""

import h5py
import numpy as np
import pytest
from old_hdf5 import as_before

from saelab.analysis.steering.steering_file import read_arrays, write_arrays
from saelab.config import UsageError

NAMES = ("latent", "input", "lens", "peaks")


def arrays() -> dict[str, np.ndarray]:
    return {
        "latent": np.arange(3),
        "input": np.array([0.5, np.nan, 1.0]),
        "lens": np.array([[0, 1], [1, 2], [2, 0]]),
        "peaks": np.array([[0, -1], [-1, -1], [2, 1]], dtype=np.int32),
    }


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "steering.h5"
    write_arrays(path, arrays(), ["a", "ñ", " \n"], {"prompt": "x"})
    return path


def test_arrays_vocabulary_and_facts_come_back(path):
    found, vocabulary, facts = read_arrays(path, NAMES)
    for name, values in arrays().items():
        assert np.array_equal(found[name], values, equal_nan=name == "input")
        assert found[name].dtype == values.dtype
    assert vocabulary == ("a", "ñ", " \n")
    assert facts == {"prompt": "x", "format": "saelab-steering/1"}


def damage(path, name, values):
    with as_before(path) as h5:
        del h5[name]
        h5[name] = values


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("score/latent", np.arange(2), "differ in length"),
        ("score/lens", np.array([[0], [1], [3]]), "tokens outside the vocabulary"),
        ("score/peaks", np.array([[0], [1], [-2]]), "tokens outside the vocabulary"),
        ("score/lens", np.array([0, 1, 2]), "has the shape"),
        ("score/input", h5py.ExternalLink("/etc/hosts", "/"), "is a link"),
    ],
)
def test_what_does_not_fit_is_refused(path, name, values, message):
    damage(path, name, values)
    with pytest.raises(UsageError, match=message):
        read_arrays(path, NAMES)


def test_a_missing_column_a_cut_file_and_another_format_are_refused(path, tmp_path):
    with pytest.raises(UsageError, match="score/output"):
        read_arrays(path, (*NAMES, "output"))
    with as_before(path) as h5:
        h5.attrs["facts"] = '{"format": "saelab-steering/9"}'
    with pytest.raises(UsageError, match=r"'saelab-steering/9'.*again"):
        read_arrays(path, NAMES)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UsageError, match="not a whole steering file"):
        read_arrays(path, NAMES)


def test_nothing_is_left_of_a_write_that_fails(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_arrays(tmp_path / "steering.h5", arrays(), ["a"], {"bad": float("nan")})
    assert list(tmp_path.iterdir()) == []

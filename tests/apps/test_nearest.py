from itertools import islice

import numpy as np
import pytest
from apps.test_compare import random_decoder
from feature_browser.data.weights import DecoderRows
from feature_browser.pages.compare import nearest as searching
from feature_browser.pages.compare.nearest import begin, nearest, search
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch):
    """Tiles and stretches that do not divide the sizes below."""
    for name, size in (("ROWS", 5), ("COLUMNS", 7), ("STRETCH", 16)):
        monkeypatch.setattr(searching, name, size)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("n", "m"), [(37, 23), (1, 1), (1, 30), (30, 1), (16, 7)])
def test_tiles_find_what_all_cosines_at_once_find(n: int, m: int, signed: bool):
    this, other = random_decoder(n, 0, signed=signed), random_decoder(m, 1, signed=signed)
    cosines = this.rows @ other.rows.T
    cosines = np.abs(cosines) if signed else cosines
    across, back = nearest(this, other)
    assert np.array_equal(across.row, cosines.argmax(axis=1))
    assert np.array_equal(back.row, cosines.argmax(axis=0))
    assert across.cosine == pytest.approx(cosines.max(axis=1), abs=1e-6)
    assert back.cosine == pytest.approx(cosines.max(axis=0), abs=1e-6)


def test_of_equally_near_rows_the_first_is_taken():
    # Whole numbers: every order of summing gives the same cosines.
    rows = np.tile(np.eye(3, dtype=np.float32), (12, 1))
    one = DecoderRows(rows, np.ones(36, np.float32), signed=False)
    across, back = nearest(one, one)
    assert across.row.tolist() == back.row.tolist() == [0, 1, 2] * 12


@settings(max_examples=10, deadline=None)
@given(stop=st.integers(1, 4))
def test_a_search_goes_on_from_where_it_was_broken_off(stop: int):
    this, other = random_decoder(60, 2), random_decoder(33, 3)
    half = next(islice(search(this, other, begin(this, other)), stop - 1, None))
    assert half.share == min(60, 16 * stop) / 60
    whole = [half, *search(this, other, half)][-1]
    across, back = nearest(this, other)
    assert np.array_equal(whole.across.row, across.row)
    assert np.array_equal(whole.back.row, back.row)


def test_the_share_that_is_done_rises_to_one():
    told: list[float] = []
    nearest(random_decoder(40, 0), random_decoder(9, 1), report=told.append)
    assert told == [0.4, 0.8, 1.0]


def test_what_goes_wrong_in_a_worker_is_raised():
    with pytest.raises(ValueError, match="mismatch"):
        nearest(
            random_decoder(5, 0), DecoderRows(np.eye(3, dtype=np.float32), np.ones(3), signed=False)
        )

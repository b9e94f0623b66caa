"""Codes come back from disk as they were, by row and by latent, however they were cut."""

import numpy as np
import pytest
from analysis.features.cases import random_case, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from old_hdf5 import as_before

from saelab.analysis.features.codes import SHARD, ContextBlock, Events, Piece, write_shard
from saelab.config import UsageError


@settings(max_examples=10)
@given(
    seed=st.integers(0, 10**6), cuts=st.sampled_from([(), (1,), (4, 9)]), first=st.integers(0, 5)
)
def test_firings_come_by_latent_and_then_by_place(tmp_path_factory, seed, cuts, first):
    case = random_case(tmp_path_factory.mktemp("codes"), seed, cuts=cuts)
    firings = case.codes.firings(first, 6)
    latent, row = case.rows.T[first:].nonzero()
    assert np.array_equal(firings.latent, latent)
    assert np.array_equal(firings.row, row)
    assert np.array_equal(firings.value, case.rows.T[first:][latent, row])
    context, position = case.mask.nonzero()
    assert np.array_equal(firings.context, context[row])
    assert np.array_equal(firings.place % 7, position[row])
    assert np.array_equal(case.codes.counts, (case.rows != 0).sum(axis=0))


def test_near_misses_come_in_the_same_order_with_their_closeness(tmp_path):
    case = random_case(tmp_path, 3, cuts=(2, 7))
    found = case.codes.near_misses(1, 5)
    assert found is not None
    events, closeness = found
    near = case.near[case.mask].T[1:5]
    latent, row = near.nonzero()
    assert np.array_equal(events.latent, latent)
    assert np.array_equal(events.row, row)
    assert np.array_equal(closeness, np.abs(near[latent, row]))


def test_the_latents_of_any_rows_are_found(tmp_path):
    case = random_case(tmp_path, 5, cuts=(4, 9))
    rows = np.array([30, 0, len(case.rows) - 1, 30, 7])
    count, latent = case.codes.latents_of(rows)
    for row, mine in zip(rows, np.split(latent, np.cumsum(count)), strict=False):
        assert mine.tolist() == case.rows[row].nonzero()[0].tolist()


@pytest.mark.parametrize("most", [1, 20, 10**6])
def test_ranges_cover_all_latents_once_and_hold_no_more_than_asked(tmp_path, most):
    case = random_case(tmp_path, 1)
    ranges = list(case.codes.ranges(most))
    assert [first for first, _ in ranges] == [0, *(last for _, last in ranges[:-1])]
    assert ranges[-1][1] == 6
    for first, last in ranges:
        assert last - first == 1 or case.codes.counts[first:last].sum() <= most


def test_text_beyond_what_can_be_numbered_is_refused(tmp_path):
    none = Events(*tensors(np.zeros(0, int), np.zeros(0, int), np.zeros(0)))
    text = ContextBlock(np.zeros((1, 4), int), np.zeros(1, int))
    with pytest.raises(UsageError, match="lower --n-tokens"):
        write_shard(tmp_path / "x.h5", [Piece(np.array([2**32]), none, None)], [text], 3)


def test_a_damaged_checkpoint_says_what_to_do(tmp_path):
    random_case(tmp_path, 0)
    with as_before(tmp_path / SHARD.format(1)) as h5:
        del h5.attrs["facts"]
    with pytest.raises(UsageError, match="delete it and run `saelab features` again"):
        random_case(tmp_path, 0, cuts=())

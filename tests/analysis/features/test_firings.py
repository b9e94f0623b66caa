"""The few operations on sorted firings, against loops."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.analysis.features.firings import (
    Lot,
    best_of_visits,
    by_group,
    chance,
    contenders,
    first_of_each,
    largest_first,
    lowest_of_each,
    new_groups,
    owners,
    ragged,
)

seeds = st.integers(0, 10**6)


@settings(max_examples=20)
@given(seed=seeds, n_groups=st.sampled_from([1, 5, 70_000, 2**18]), size=st.integers(0, 200))
def test_the_order_by_group_is_stable_however_many_groups(seed, n_groups, size):
    group = np.random.default_rng(seed).integers(0, n_groups, size)
    assert np.array_equal(by_group(group, n_groups), np.argsort(group, kind="stable"))


@given(seed=seeds, size=st.integers(0, 60), n=st.integers(1, 5), distinct=st.integers(1, 50))
def test_of_each_group_the_smallest_are_kept_and_ties_go_to_the_earlier(seed, size, n, distinct):
    draw = np.random.default_rng(seed)
    group = draw.integers(0, 7, size)
    preference = draw.integers(0, distinct, size).astype(np.uint32)
    found = first_of_each(group, preference, 7, n)
    for g in range(7):
        mine = sorted(np.flatnonzero(group == g), key=lambda i: (preference[i], i))[:n]
        assert found[g].tolist() == mine + [-1] * (n - len(mine))


@settings(max_examples=30)
@given(seed=seeds, size=st.sampled_from([0, 50, 3000]), lowest=st.sampled_from([0, 2**31]))
def test_of_each_group_the_lowest_lots_are_those_of_a_full_sort(seed, size, lowest):
    draw = np.random.default_rng(seed)
    group = draw.integers(0, 4, size) ** 2
    lot = draw.integers(lowest, 2**32, size, dtype=np.uint32)
    expected = first_of_each(group, lot, 10, 3)
    counts = np.bincount(group, minlength=10)
    assert np.array_equal(lowest_of_each(group, lot, counts, 3), expected)


@given(seed=seeds, counts=st.lists(st.integers(0, 30), max_size=6), distinct=st.integers(1, 40))
def test_the_contenders_of_each_group_include_its_largest_and_ties_with_them(
    seed, counts, distinct
):
    group = np.repeat(np.arange(len(counts)), np.array(counts, dtype=int))
    size = np.random.default_rng(seed).integers(0, distinct, len(group)).astype(np.float32)
    kept = set(contenders(group, size, np.array(counts, dtype=int), 3).tolist())
    for g in range(len(counts)):
        mine = np.flatnonzero(group == g)
        least = np.sort(size[mine])[::-1][:3].min(initial=np.inf)
        assert kept >= set(mine[size[mine] >= least].tolist())


def test_few_of_a_large_group_contend():
    size = np.random.default_rng(0).random(10_000).astype(np.float32)
    group = np.repeat([0, 1], [2, 9_998])
    assert len(contenders(group, size, np.array([2, 9_998]), 8)) < 100


@given(st.lists(st.floats(0, 2.0**100, width=32), min_size=2, max_size=20))
def test_larger_sizes_are_preferred(sizes):
    size = np.array(sizes, dtype=np.float32)
    by_size = np.sort(size)[::-1]
    assert np.array_equal(size[np.argsort(largest_first(size), kind="stable")], by_size)


@given(seed=seeds, size=st.integers(0, 40))
def test_the_best_of_each_visit_is_its_first_maximum(seed, size):
    draw = np.random.default_rng(seed)
    visit = np.sort(draw.integers(0, 8, size))
    value = draw.integers(0, 4, size).astype(np.float32)
    expected = [
        int(np.flatnonzero(visit == v)[value[visit == v].argmax()]) for v in np.unique(visit)
    ]
    assert best_of_visits(visit, value).tolist() == expected
    assert new_groups(visit).sum() == len(expected)


def test_ragged_ranges_follow_each_other():
    assert ragged(np.array([4, 0, 9]), np.array([2, 0, 3])).tolist() == [4, 5, 9, 10, 11]
    assert ragged(np.zeros(0, int), np.zeros(0, int)).tolist() == []


@given(st.lists(st.integers(0, 3), max_size=8))
def test_the_owners_of_events_are_their_groups_repeated(counts):
    expected = np.repeat(np.arange(len(counts)), np.array(counts, dtype=int))
    assert np.array_equal(owners(np.array(counts, dtype=int)), expected)


def test_lots_are_fair_and_those_of_two_purposes_are_unrelated():
    latent, row = np.arange(40_000) % 200, np.arange(40_000) // 200
    lots = [
        chance(seed, lot, latent, row) / 2**32
        for seed, lot in ((0, Lot.RANDOM), (0, Lot.STRATA), (1, Lot.RANDOM))
    ]
    for lot in lots:
        counts, _ = np.histogram(lot, 100, (0, 1))
        # 99 degrees of freedom: p is about 1e-5.
        assert ((counts - 400) ** 2 / 400).sum() < 170
    correlation = np.corrcoef([*lots, latent, row])
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 0.025  # five standard errors

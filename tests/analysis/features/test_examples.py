"""Which examples are kept, against looking at every token of every context."""

from dataclasses import replace

import numpy as np
import pytest
from analysis.features.cases import random_case, write_case
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.analysis.features.evidence import evidence_arrays
from saelab.analysis.features.examples import at_random, from_strata, silent_examples
from saelab.analysis.features.options import FeatureOptions
from saelab.analysis.features.statistics import Strata

OPTIONS = FeatureOptions(n_examples=3, reach=2, n_strata=3, n_per_stratum=2, n_silent=2)


def evidence(case, options=OPTIONS):
    return evidence_arrays(case.codes, options, d_vocab=9)


def kept(arrays, kind, latent):
    """(context, position, value) of the examples there are."""
    names = ("context", "position", "value")
    columns = [arrays[f"{kind}/{name}"][latent].tolist() for name in names]
    return [row for row in zip(*columns, strict=True) if row[0] >= 0]


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), cuts=st.sampled_from([(), (5,)]))
def test_the_strongest_of_each_context_are_kept_on_both_sides(tmp_path_factory, seed, cuts):
    case = random_case(tmp_path_factory.mktemp("codes"), seed, cuts=cuts)
    arrays = evidence(case)
    for kind, sign in (("top", 1), ("negative", -1)):
        for latent in range(6):
            side = case.dense[:, :, latent] * sign
            best = [(c, int(row.argmax()), float(row.max())) for c, row in enumerate(side)]
            expected = sorted((b for b in best if b[2] > 0), key=lambda b: (-b[2], b[0]))[:3]
            found = kept(arrays, kind, latent)
            assert found == [(c, p, sign * value) for c, p, value in expected]


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6))
def test_samples_are_firings_each_once_and_as_many_as_there_are_room_for(tmp_path_factory, seed):
    case = random_case(tmp_path_factory.mktemp("codes"), seed)
    arrays = evidence(case)
    for latent in range(6):
        mine = case.dense[:, :, latent]
        found = kept(arrays, "random", latent)
        assert len(set(found)) == len(found) == min(3, np.count_nonzero(mine))
        assert all(mine[c, p] == value for c, p, value in found)
        edges, population = arrays["strata/edges"][latent], arrays["strata/population"][latent]
        contexts = arrays["strata/context"][latent].reshape(3, 2)
        for stratum in range(3):
            here = [
                e for e in kept(arrays, "strata", latent)
                if edges[stratum] <= abs(e[2]) < edges[stratum + 1]
                or (stratum == 2 and abs(e[2]) >= edges[2])
            ]  # fmt: skip
            assert len(set(here)) == len(here) == min(2, population[stratum])
            assert (contexts[stratum] >= 0).sum() == len(here)


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6))
def test_windows_hold_every_firing_around_the_peak_and_nothing_else(tmp_path_factory, seed):
    case = random_case(tmp_path_factory.mktemp("codes"), seed)
    arrays = evidence(case)
    for kind in ("top", "negative", "strata", "random"):
        if f"{kind}/window_start" not in arrays:
            assert kind == "negative"
            continue
        start = arrays[f"{kind}/window_start"]
        for latent in range(6):
            place = int(start[latent])
            for slot, count in enumerate(arrays[f"{kind}/window_count"][latent].tolist()):
                context = arrays[f"{kind}/context"][latent, slot]
                position = int(arrays[f"{kind}/position"][latent, slot])
                part = slice(place, place + count)
                place += count
                if context < 0:
                    assert count == 0
                    continue
                line = case.dense[context, :, latent]
                near = [p for p in line.nonzero()[0].tolist() if abs(p - position) <= 2]
                offset = arrays[f"{kind}/window_offset"][part]
                assert (offset + position).tolist() == near
                assert arrays[f"{kind}/window_value"][part].tolist() == line[near].tolist()
            assert place == start[latent + 1]


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), rate=st.sampled_from([0.05, 0.3]))
def test_near_misses_are_the_closest_of_contexts_that_never_fire(tmp_path_factory, seed, rate):
    case = random_case(tmp_path_factory.mktemp("codes"), seed, rate=rate)
    arrays = evidence(case)
    for latent in range(6):
        quiet = [c for c in range(12) if not case.dense[c, :, latent].any()]
        size = np.abs(case.near[:, :, latent])
        best = [(c, int(size[c].argmax()), float(size[c].max())) for c in quiet]
        expected = sorted((b for b in best if b[2]), key=lambda b: (-b[2], b[0]))[:2]
        found = kept(arrays, "near_miss", latent)
        assert [(c, p) for c, p, _ in found] == [(c, p) for c, p, _ in expected]
        assert [value for *_, value in found] == [case.near[c, p, latent] for c, p, _ in expected]
        closeness = arrays["near_miss/closeness"][latent][: len(found)]
        assert closeness.tolist() == [value for *_, value in expected]


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), rate=st.sampled_from([0.1, 0.5]))
def test_silent_contexts_never_fire_and_all_there_is_room_for_are_found(
    tmp_path_factory, seed, rate
):
    case = random_case(tmp_path_factory.mktemp("codes"), seed, rate=rate)
    arrays = evidence(case)
    for latent in range(6):
        quiet = [c for c in range(12) if not case.dense[c, :, latent].any()]
        contexts = arrays["silent/context"][latent]
        found = contexts[contexts >= 0].tolist()
        assert len(set(found)) == len(found) == min(2, len(quiet))
        assert set(found) <= set(quiet)
        assert all(
            case.mask[c, p]
            for c, p in zip(contexts, arrays["silent/position"][latent], strict=True)
            if c >= 0
        )


@pytest.fixture(scope="module")
def sixty(tmp_path_factory):
    """One latent that fires with the values 1 to 60, and never in contexts 6 to 11."""
    dense = np.zeros((12, 11, 1), dtype=np.float32)
    dense[:6, 1:, 0] = 1 + np.arange(60).reshape(6, 10)
    mask = np.ones((12, 11), dtype=bool)
    mask[:, 0] = False
    tokens = np.zeros((12, 11), dtype=int)
    return write_case(tmp_path_factory.mktemp("sixty"), dense, np.zeros_like(dense), mask, tokens)


def test_samples_are_fair(sixty):
    """Each of 60 firings, and each of 6 silent contexts, should be kept equally often."""
    firings = sixty.codes.firings(0, 1)
    strata = Strata.of(firings, 3)
    firing, stratum, silent = np.zeros(61), np.zeros(61), np.zeros(12)
    for seed in range(300):
        options = replace(OPTIONS, seed=seed)
        firing[firings.value[at_random(firings, options)].astype(int)] += 1
        stratum[firings.value[from_strata(firings, strata, options)].astype(int)] += 1
        silent[silent_examples(firings, options)["silent/context"]] += 1
    assert silent[:6].sum() == 0
    # 59, 59 and 5 degrees of freedom: p is about 1e-4.
    for counts, limit in ((firing[1:], 110), (stratum[1:], 110), (silent[6:], 26)):
        expected = counts.mean()
        assert ((counts - expected) ** 2 / expected).sum() < limit


def test_evidence_does_not_depend_on_how_the_codes_were_cut(tmp_path, monkeypatch):
    whole = evidence(random_case(tmp_path / "whole", 8, cuts=()))
    monkeypatch.setattr("saelab.analysis.features.evidence.FIRINGS_AT_ONCE", 10)
    parts = evidence(random_case(tmp_path / "parts", 8, cuts=(3, 8)))
    assert whole.keys() == parts.keys()
    for name, values in whole.items():
        assert values.dtype == parts[name].dtype
        assert np.array_equal(values, parts[name]), name


def test_unsigned_codes_have_no_negative_examples_and_half_a_histogram(sixty):
    arrays = evidence(sixty)
    assert not any(name.startswith("negative/") for name in arrays)
    assert arrays["histogram/counts"].shape == (1, 64)

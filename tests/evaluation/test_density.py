"""Firing frequencies: their sum is the L0, and neither sign nor batching matters."""

import pytest
import torch
from evaluation.cases import flipped, permuted, random_dense, sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.evaluation.density import DensityCounts, log_histogram

CPU = torch.device("cpu")


def density(*parts):
    counts = DensityCounts(parts[0].d_sae, CPU)
    for part in parts:
        counts.update(part)
    return counts.results()


def test_a_case_by_hand():
    dense = torch.tensor([[1.0, -2.0, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 0], [4.0, 5.0, 0, 0]])
    found = density(sparse(dense))
    assert found.frequency == [0.75, 0.5, 0, 0]
    assert found.negative == [0, 0.5, 0, 0]
    assert (found.dead, found.dense, found.n_tokens) == (0.5, 0.5, 4)
    assert found.l0_counts == [1, 1, 2]
    assert found.mean_l0 == 1.25
    assert found.l0_quantiles == [0, 0, 1, 2, 2]


@settings(max_examples=30)
@given(
    seed=st.integers(0, 99), rows=st.integers(1, 40), cut=st.integers(0, 40), ragged=st.booleans()
)
def test_frequencies_sum_to_the_l0_however_rows_are_batched(seed, rows, cut, ragged):
    dense = random_dense(rows, 7, seed=seed, signed=True)
    whole = density(sparse(dense, ragged=ragged))
    assert sum(whole.frequency) == pytest.approx((dense != 0).double().sum(1).mean())
    assert sum(i * n for i, n in enumerate(whole.l0_counts)) == int((dense != 0).sum())
    parts = [part for part in (dense[:cut], dense[cut:]) if len(part)]
    assert density(*(sparse(part, ragged=ragged) for part in parts)) == whole


def test_the_histogram_counts_every_living_latent_once():
    fired = torch.tensor([0, 1, 9, 10, 11, 100, 999, 1000])
    edges, counts = log_histogram(fired, 1000)
    assert (edges[0], edges[-1]) == (-3, 0)
    assert sum(counts) == 7
    # By hand, in quarter decades from 0.001: 1; then 9, 10, 11; 100 at 0.1; 999 and 1000 last.
    assert [(i, n) for i, n in enumerate(counts) if n] == [(0, 1), (3, 1), (4, 2), (8, 1), (11, 2)]


@settings(max_examples=30)
@given(n=st.integers(1, 10**6))
def test_a_single_firing_has_a_bin(n):
    edges, counts = log_histogram(torch.tensor([1]), n)
    assert sum(counts) == 1
    assert 10 ** edges[0] <= 1 / n * (1 + 1e-9)


def test_permuting_latents_permutes_frequencies_and_changes_nothing_else():
    codes = sparse(random_dense(50, 9, signed=True))
    order = torch.randperm(9)
    plain, other = density(codes), density(permuted(codes, order))
    assert other.frequency == [plain.frequency[i] for i in order]
    assert (other.counts, other.l0_counts) == (plain.counts, plain.l0_counts)


def test_turning_latents_around_swaps_their_signs_alone():
    codes = sparse(random_dense(50, 9, signed=True))
    plain, other = density(codes), density(flipped(codes, torch.tensor([2])))
    assert other.frequency == plain.frequency
    assert other.negative[2] == pytest.approx(1 - plain.negative[2])

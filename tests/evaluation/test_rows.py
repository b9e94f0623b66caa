"""Samples of rows, and signed codes read by their poles."""

import pytest
import torch
from evaluation.cases import random_dense, sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.evaluation.rows import (
    RowSample,
    active_entries,
    chosen_rows,
    columns,
    first_rows,
    poles,
    rows_of_text,
)
from saelab.host.host import Host
from saelab.host.text import corpus_of, half_by_context, stream

both = pytest.mark.parametrize("ragged", [False, True])


@both
def test_active_entries_are_the_dense_codes_non_zeros(ragged):
    dense = random_dense(20, 5, signed=True)
    row, latent, value = active_entries(sparse(dense, ragged=ragged))
    assert len(row) == int((dense != 0).sum())
    assert torch.equal(dense[row, latent], value)


@both
def test_columns_are_those_of_the_dense_codes(ragged):
    dense = random_dense(20, 5, signed=True)
    which = torch.tensor([4, 0, 3])
    assert torch.equal(columns(sparse(dense, ragged=ragged), which), dense[:, which].double())


@both
def test_rows_are_chosen_and_cut_whatever_their_form(ragged):
    dense = random_dense(9, 5, signed=True)
    codes = sparse(dense, ragged=ragged)
    which = torch.arange(9) % 3 == 1
    assert torch.equal(chosen_rows(codes, which).dense(), dense[which])
    assert torch.equal(first_rows(codes, 4).dense(), dense[:4])


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), ragged=st.booleans())
def test_poles_are_the_positive_and_the_negative_parts(seed, ragged):
    dense = random_dense(8, 5, seed=seed, signed=True)
    found = poles(sparse(dense, ragged=ragged)).dense()
    assert torch.equal(found, torch.cat([dense.clamp_min(0), (-dense).clamp_min(0)], dim=1))


def test_a_sample_holds_the_first_rows_of_the_stream(small_run, random_lm):
    corpus = corpus_of(small_run, random_lm, "held-out")
    sae = small_run.load_sae()
    batches = list(stream(Host.of_run(small_run, random_lm), corpus, n_tokens=50, batch_size=2))
    x = torch.cat([batch.x for batch in batches])
    for n in (5, 20, 10**6):
        sample = RowSample(n)
        for batch in batches:
            sample.add(rows_of_text(batch, sae.encode(batch.x), corpus))
        rows = sample.rows()
        assert len(rows) == min(n, len(x))
        assert torch.equal(rows.x, x[:n])
        assert torch.equal(rows.codes.dense(), sae.encode(x).dense()[:n])
        halves = torch.cat([torch.from_numpy(half_by_context(batch)) for batch in batches])
        assert torch.equal(rows.fit, halves[:n])
        tokens = torch.cat([batch.tokens[batch.mask] for batch in batches])
        assert torch.equal(rows.token, tokens[:n])
        assert rows.labels is None

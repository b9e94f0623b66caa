"""A run's text is the one it was trained on, and its rows are the model's own."""

import pytest
import torch

from saelab.config import UsageError
from saelab.host.host import Host
from saelab.host.text import corpus_of, half_by_context, stream

HOOK = "blocks.0.hook_resid_post"


def test_evaluation_reads_only_held_out_text(small_run, random_lm, small_store):
    trained_on = {tuple(context) for context in small_store.tokens(0).contexts.tolist()}
    corpus = corpus_of(small_run, random_lm, "held-out")
    assert corpus.facts["split"] == "held-out"
    assert small_store.manifest.corpus["split"] == "train"
    assert corpus.facts["text_xxh3"] == small_store.manifest.corpus["text_xxh3"]
    assert len(trained_on) <= small_store.manifest.n_contexts


def test_a_text_that_has_changed_since_is_refused(small_run, random_lm, monkeypatch):
    record = small_run.provenance()
    record["corpus"]["text_xxh3"] = "0" * 32
    monkeypatch.setattr(small_run, "provenance", lambda: record)
    with pytest.raises(UsageError, match="has changed since"):
        corpus_of(small_run, random_lm, "held-out")


def test_the_streams_rows_are_the_models_at_the_masked_positions(small_run, random_lm):
    corpus = corpus_of(small_run, random_lm, "train")
    batches = list(stream(Host.of_run(small_run, random_lm), corpus, n_tokens=60, batch_size=4))
    assert sum(len(b.x) for b in batches[:-1]) < 60 <= sum(len(b.x) for b in batches)
    batch = batches[1]
    expected = random_lm.capture(batch.tokens, [HOOK])[HOOK][batch.mask]
    assert torch.equal(batch.x, expected)
    halves = half_by_context(batch)
    contexts = batch.first + batch.mask.nonzero()[:, 0].numpy()
    assert (halves == (contexts % 2 == 0)).all()


def test_asking_for_logits_changes_no_row(small_run, random_lm):
    corpus = corpus_of(small_run, random_lm, "train")
    host = Host.of_run(small_run, random_lm)
    plain, asked = (
        next(stream(host, corpus, n_tokens=1, batch_size=4, with_predictions=wanted))
        for wanted in (False, True)
    )
    assert torch.equal(asked.x, plain.x)
    assert plain.out is None
    assert asked.out is not None
    assert torch.equal(asked.out.logits, random_lm.logits(plain.tokens))


def test_a_transcoders_batches_hold_what_it_reads_and_what_it_writes(mlp_run, random_lm):
    host = Host.of_run(mlp_run, random_lm)
    corpus = corpus_of(mlp_run, random_lm, "held-out")
    for batch in stream(host, corpus, n_tokens=40, batch_size=3):
        seen = random_lm.capture(batch.tokens, [host.reads, host.writes])
        assert torch.equal(batch.x, seen[host.reads][batch.mask])
        assert torch.equal(batch.wanted, seen[host.writes][batch.mask])

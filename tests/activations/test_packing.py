"""Short documents cost what they are long, and a long text is recorded before it is counted."""

import json

import numpy as np
import pytest
import torch
from activations.store_cases import text_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.activations import harvest as harvest_module
from saelab.activations import packing as packing_module
from saelab.activations.contexts import ContextBatches
from saelab.activations.corpus import PADDING
from saelab.activations.format import UNTIL, read_manifest
from saelab.activations.harvest import HarvestOptions, harvest, plan
from saelab.activations.reforward import reforward
from saelab.activations.sequences import Sequences, lay
from saelab.activations.store import ActivationStore
from saelab.activations.verify import verify
from saelab.activations.writer import StoreWriter
from saelab.config import UsageError
from saelab.ranks import Ranks

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"]
LENGTH = 24
LENGTHS = st.lists(st.integers(1, LENGTH), min_size=1, max_size=60)


def table_of(lengths):
    """Sequences of these lengths laid side by side; every token is its sequence's number."""
    lengths = np.asarray(lengths)
    context, begin = lay(lengths, LENGTH)
    table = np.full((context[-1] + 1, LENGTH), PADDING, dtype=np.int32)
    for number, (c, b, n) in enumerate(zip(context, begin, lengths, strict=True)):
        assert (table[c, b : b + n] == PADDING).all()
        table[c, b : b + n] = number
    return table


@given(LENGTHS)
@settings(max_examples=50)
def test_sequences_are_found_again_as_they_were_laid(lengths):
    table = table_of(lengths)
    found = Sequences.of(table)
    assert found.length.tolist() == lengths
    tokens, place = found.padded()
    for number, (line, at) in enumerate(zip(tokens, place, strict=True)):
        assert (line[: lengths[number]] == number).all()
        assert (line[lengths[number] :] == PADDING).all()
        assert (at >= 0).sum() == lengths[number]
    assert sorted(place[place >= 0].tolist()) == np.flatnonzero(table.ravel() != PADDING).tolist()
    expected = np.concatenate([np.arange(n) for n in lengths])
    assert np.array_equal(found.position[table != PADDING], expected)


@given(LENGTHS)
@settings(max_examples=50)
def test_contexts_are_at_least_half_full_side_by_side(lengths):
    """Two neighbours never have room in one, or the second would stand behind the first."""
    used = (table_of(lengths) != PADDING).sum(axis=1)
    assert (used[:-1] + used[1:] >= LENGTH - 2 * (LENGTH // 2)).all()
    context, begin = lay(np.asarray(lengths), LENGTH)
    for i in np.flatnonzero(np.diff(context)):
        assert begin[i] + lengths[i] + 1 + lengths[i + 1] > LENGTH


@given(LENGTHS, st.integers(1, 200))
@settings(max_examples=50)
def test_batches_hold_every_sequence_once_and_little_padding(lengths, positions):
    found = Sequences.of(table_of(lengths))
    batches = list(found.batches(positions))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for chosen in batches:
        tokens, _ = found.padded(chosen)
        assert len(chosen) == 1 or tokens.size <= positions
        assert tokens.shape[1] == found.length[chosen].max()


@pytest.fixture(scope="module")
def short_text(tmp_path_factory):
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", ".", "a", "dog", "ran"]
    path = tmp_path_factory.mktemp("short") / "short.jsonl"
    documents = [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(240)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


@pytest.fixture(scope="module")
def packed(random_lm, short_text, tmp_path_factory):
    corpus = text_corpus(str(short_text), random_lm, context_length=LENGTH)
    options = HarvestOptions(n_tokens=600, dtype="float32", batch_size=4, gradients=True)
    out = tmp_path_factory.mktemp("packed") / "store"
    return harvest(random_lm, HOOKS, corpus, out=out, options=options)


def test_rows_of_short_documents_are_those_of_each_alone(random_lm, short_text, packed):
    """The second method: one document at a time through the model, with its own BOS."""
    assert packed.manifest.packed
    corpus = text_corpus(str(short_text), random_lm, context_length=LENGTH)
    alone = {}
    contexts = corpus.read(0, corpus.n_contexts)
    for tokens, document in zip(contexts.tokens, contexts.document.tolist(), strict=True):
        real = torch.from_numpy(tokens[tokens != PADDING].astype(np.int64))[None]
        ones = torch.ones_like(real, dtype=torch.bool)
        activations, gradients = random_lm.gradients(real, HOOKS, ones)
        alone[document] = {**activations, **{f"{h}.gradient": g for h, g in gradients.items()}}
    seen = 0
    for index, unit in enumerate(packed.units):
        columns = packed.tokens(unit)
        start = sum(packed.unit_rows[:index])
        local = columns.context.astype(int) - packed.manifest.unit_contexts(unit).start
        position = Sequences.of(columns.contexts).position[local, columns.position]
        assert position.min() == 1
        for site in packed.sites:
            rows = packed.site(site).rows(start, start + columns.n_rows)
            expected = [
                alone[document][site][0, p]
                for document, p in zip(columns.document.tolist(), position.tolist(), strict=True)
            ]
            torch.testing.assert_close(rows, torch.stack(expected), rtol=1e-4, atol=1e-5)
        seen += columns.n_rows
    assert seen == packed.n_rows >= 600


def test_short_documents_fill_their_contexts(packed):
    positions = packed.manifest.n_contexts * LENGTH
    assert positions / packed.n_rows < 2
    assert verify(packed.path) == []


def test_every_document_of_a_shared_context_has_its_own_first_positions(packed):
    from conftest import small_config

    from saelab.training.selection import select

    config = small_config(packed, first_position=2, outliers="keep")
    sequences = [len(Sequences.of(packed.tokens(unit).contexts)) for unit in packed.units]
    # Position 0 is <bos>, which has no row.
    assert len(select(packed, config).left_out) == sum(sequences)


def test_the_model_runs_no_more_than_twice_the_real_tokens(random_lm, packed, monkeypatch):
    from saelab.activations.forward import _batches, row_mask

    table = packed.tokens(0).contexts
    batches = _batches(table, row_mask(random_lm, table).ravel(), 4)
    ran = sum(batch.tokens.size for batch in batches)
    assert ran < 1.2 * (table != PADDING).sum()


def test_packed_rows_agree_with_the_model_again(random_lm, packed):
    for found in reforward(packed, random_lm, 20):
        assert found.agrees
        assert found.rows > 100


def test_batches_of_contexts_are_taken_apart(random_lm, packed):
    """End to end, a model must not see one document from another."""
    batch = next(ContextBatches(packed, packed.manifest.n_contexts))
    assert int(batch.mask.sum()) == packed.n_rows
    assert (batch.tokens[:, 0] == random_lm.info.bos_token_id).all()
    assert int((batch.tokens[batch.mask] == random_lm.info.bos_token_id).sum()) == 0
    assert len(batch.tokens) > 2 * packed.manifest.n_contexts
    assert batch.tokens.shape[1] <= 9


def test_training_end_to_end_on_packed_contexts(packed, checkpoint, tmp_path):
    from saelab.sae.topk import TopKConfig
    from saelab.training.config import TrainConfig
    from saelab.training.loop import train

    config = TrainConfig(
        sae=TopKConfig(d_sae=32, k=4),
        activations=packed.path,
        site=HOOKS[0],
        n_tokens=2000,
        batch_size=10 * LENGTH,
        lr=1e-3,
        objective="e2e",
    )
    run = train(config, out=tmp_path / "run")
    assert run.weights.is_file()


def test_long_documents_stay_one_to_a_context(random_lm, text_file):
    corpus = text_corpus(str(text_file), random_lm, context_length=8)
    manifest = plan(random_lm, HOOKS, corpus, HarvestOptions(n_tokens=100))
    assert not manifest.packed
    assert "contexts" not in manifest.rows_policy


# Texts that are counted while they are recorded.


@pytest.fixture
def long_text(tmp_path, monkeypatch):
    """Text for which counting ahead would take too long, by the measure set here."""
    monkeypatch.setattr(harvest_module, "COUNTED_TOKENS", 200)
    monkeypatch.setattr(harvest_module, "UNIT_CONTEXTS", 16)
    monkeypatch.setattr(packing_module, "CHUNK", 16)
    monkeypatch.setattr("saelab.activations.sources.SHARD_BYTES", (2000, 2000))
    monkeypatch.setattr("saelab.activations.corpus.BLOCK_BYTES", 1000)
    monkeypatch.setattr("saelab.activations.corpus.BLOCK_CONTEXTS", 1)
    path = tmp_path / "docs.jsonl"
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 20, 400)
    path.write_text("".join(json.dumps({"text": "the cat sat . " * n}) + "\n" for n in sizes))
    return path


def options(n_tokens=1500):
    return HarvestOptions(n_tokens=n_tokens, dtype="float32")


def rows_of(store):
    """Every row with its place, in the order of places."""
    found = []
    for index, unit in enumerate(store.units):
        columns, start = store.tokens(unit), sum(store.unit_rows[:index])
        rows = store.site(HOOKS[0]).rows(start, start + columns.n_rows)
        order = np.lexsort((columns.position, columns.context))
        found.append(rows[torch.from_numpy(order)])
    return torch.cat(found)


def test_a_long_text_is_planned_by_an_estimate_and_recorded_exactly(
    random_lm, long_text, tmp_path, monkeypatch
):
    corpus = text_corpus(str(long_text), random_lm, context_length=8)
    manifest = plan(random_lm, HOOKS[:1], corpus, options())
    assert not manifest.counted
    assert manifest.corpus[UNTIL] == 1500
    assert corpus.expected > 1000
    store = harvest(random_lm, HOOKS[:1], corpus, out=tmp_path / "open", options=options())
    monkeypatch.setattr(harvest_module, "COUNTED_TOKENS", 10**9)
    fresh = text_corpus(str(long_text), random_lm, context_length=8)
    counted = harvest(random_lm, HOOKS[:1], fresh, out=tmp_path / "counted", options=options())
    assert store.complete
    assert counted.manifest.counted
    assert store.manifest.n_contexts == counted.manifest.n_contexts
    assert store.n_rows == counted.n_rows >= 1500
    assert store.manifest.provenance["text"] == counted.manifest.provenance["text"]
    torch.testing.assert_close(rows_of(store), rows_of(counted), rtol=1e-4, atol=1e-5)
    assert verify(store.path) == []


def test_an_interrupted_harvest_of_a_long_text_goes_on_where_it_was(
    random_lm, long_text, tmp_path, monkeypatch
):
    out = tmp_path / "s"
    whole = harvest(
        random_lm,
        HOOKS[:1],
        text_corpus(str(long_text), random_lm, context_length=8),
        out=tmp_path / "whole",
        options=options(),
    )
    real, done = StoreWriter.commit, []

    def failing(writer, prepared):
        if len(done) == 3:
            raise OSError("the power went")
        done.append(prepared.unit)
        real(writer, prepared)

    monkeypatch.setattr(StoreWriter, "commit", failing)
    with pytest.raises(OSError, match="the power went"):
        harvest(
            random_lm,
            HOOKS[:1],
            text_corpus(str(long_text), random_lm, context_length=8),
            out=out,
            options=options(),
        )
    monkeypatch.setattr(StoreWriter, "commit", real)
    partial = ActivationStore(out)
    assert not partial.complete
    assert partial.units
    store = harvest(
        random_lm,
        HOOKS[:1],
        text_corpus(str(long_text), random_lm, context_length=8),
        out=out,
        options=options(),
    )
    assert store.complete
    assert store.manifest.n_contexts == whole.manifest.n_contexts
    torch.testing.assert_close(rows_of(store), rows_of(whole))
    again = harvest(
        random_lm,
        HOOKS[:1],
        text_corpus(str(long_text), random_lm, context_length=8),
        out=out,
        options=options(),
    )
    assert again.manifest == store.manifest


def test_processes_find_out_the_end_of_a_long_text_each(
    random_lm, long_text, tmp_path, monkeypatch
):
    # They run one after the other here, so that each would wait in vain for the next.
    monkeypatch.setattr("saelab.activations.shards.PATIENCE", 0.1)
    out = tmp_path / "s"
    for rank in (1, 0, 2):
        corpus = text_corpus(str(long_text), random_lm, context_length=8)
        manifest = plan(random_lm, HOOKS[:1], corpus, options())
        store = harvest_module.record(
            random_lm, corpus, manifest, out=out, options=options(), ranks=Ranks(rank, 3)
        )
    assert store.complete
    assert store.n_rows >= 1500
    assert verify(out) == []


def test_an_estimate_that_was_too_low_grows(random_lm, long_text, tmp_path, monkeypatch):
    monkeypatch.setattr(harvest_module, "SPARE", 0.1)
    corpus = text_corpus(str(long_text), random_lm, context_length=8)
    store = harvest(random_lm, HOOKS[:1], corpus, out=tmp_path / "s", options=options())
    assert store.complete
    assert store.n_rows >= 1500


def test_a_stream_that_ends_early_is_recorded_whole_and_said(
    random_lm, tmp_path, monkeypatch, capsys, long_text
):
    import datasets

    rows = [{"text": "the cat sat . " * 5} for _ in range(100)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: iter(rows))
    monkeypatch.setattr("saelab.activations.sources.STREAM_DOCUMENTS", 8)
    corpus = text_corpus("hf:a", random_lm, context_length=8, max_tokens=4000)
    store = harvest(random_lm, HOOKS[:1], corpus, out=tmp_path / "s", options=options(4000))
    assert "the text ended after 1900 of 4000 tokens" in capsys.readouterr().err
    assert store.complete
    assert store.n_rows == 1900
    assert read_manifest(store.path).counted


def test_a_text_that_seems_too_short_is_counted_before_anything_is_written(
    random_lm, long_text, tmp_path
):
    corpus = text_corpus(str(long_text), random_lm, context_length=8)
    with pytest.raises(UsageError, match=r"The text has 1\d{4} tokens for training, 20000 were"):
        harvest(random_lm, HOOKS[:1], corpus, out=tmp_path / "s", options=options(20_000))
    assert not (tmp_path / "s").exists()

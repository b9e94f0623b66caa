"""Live batches: every row of the text, in an order that can be continued."""

from dataclasses import replace
from threading import current_thread, main_thread

import numpy as np
import pytest
import torch
from conftest import TEXT

from saelab.activations.corpus import GrammarCorpus, load_corpus
from saelab.activations.forward import model_input, row_mask
from saelab.activations.live import LiveBatches
from saelab.activations.live_pool import LiveSite
from saelab.activations.live_text import LiveOptions, LiveText
from saelab.activations.row_exchange import RowExchange
from saelab.config import UsageError
from saelab.lm.hf import load_hugging_face_model
from saelab.ranks import Ranks

HOOK = "blocks.0.hook_resid_post"
SMALL = LiveOptions(forward_contexts=5, pool_rows=128)
SITES = [LiveSite(HOOK)]


@pytest.fixture(scope="module")
def corpus(random_lm, tmp_path_factory):
    path = tmp_path_factory.mktemp("live") / "text.txt"
    path.write_text(TEXT)
    return load_corpus(str(path), random_lm, context_length=8)


def all_rows(lm, corpus, first=0):
    tokens = corpus.read(first, corpus.n_contexts).tokens
    mask = torch.from_numpy(row_mask(lm, tokens))
    return lm.capture(model_input(tokens), [HOOK])[HOOK][mask]


def ordered(rows):
    return sorted(tuple(round(v, 4) for v in row) for row in rows.tolist())


@pytest.mark.parametrize("first", [0, 21])
def test_an_epoch_serves_every_row_of_the_text_once(random_lm, corpus, first):
    rows = all_rows(random_lm, corpus, first)
    options = LiveOptions(first=first, forward_contexts=5, pool_rows=128)
    batches = LiveBatches(random_lm, corpus, SITES, len(rows), options=options)
    once, again = next(batches)[0].x, next(batches)[0].x
    assert ordered(once) == ordered(again) == ordered(rows)
    assert not torch.equal(once, again)


def test_the_order_depends_on_the_seed_alone(random_lm, corpus):
    first, same, other = (
        next(LiveBatches(random_lm, corpus, SITES, 64, replace(SMALL, seed=s)))[0].x
        for s in (0, 0, 1)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("before", [0, 1, 3, 9])
def test_a_continued_stream_serves_the_same_batches(random_lm, corpus, before):
    whole = LiveBatches(random_lm, corpus, SITES, 50, options=SMALL)
    for _ in range(before):
        next(whole)
    resumed = LiveBatches(random_lm, corpus, SITES, 50, options=SMALL)
    resumed.position_of(SITES[0]).load_state_dict(whole.position_of(SITES[0]).state_dict())
    for _ in range(4):
        assert torch.equal(next(resumed)[0].x, next(whole)[0].x)


def test_another_seed_cannot_be_continued(random_lm, corpus):
    other = LiveBatches(random_lm, corpus, SITES, 50, LiveOptions(seed=1))
    state = other.position_of(SITES[0]).state_dict()
    with pytest.raises(UsageError, match="seed was 1, is 0"):
        LiveBatches(random_lm, corpus, SITES, 50).position_of(SITES[0]).load_state_dict(state)


def test_an_endless_text_is_served_from_its_first_context_on(tiny_lm):
    corpus = GrammarCorpus("train", 0, 32)
    options = LiveOptions(first=40, pool_rows=256)
    batches = LiveBatches(tiny_lm, corpus, SITES, 10, options=options)
    tokens = corpus.read(40, 48).tokens
    mask = torch.from_numpy(row_mask(tiny_lm, tokens))
    expected = tiny_lm.capture(model_input(tokens), ["blocks.0.hook_resid_post"])
    rows = expected["blocks.0.hook_resid_post"][mask]
    n = len(rows) // 10
    served = torch.cat([next(batches)[0].x for _ in range(n)])
    assert set(ordered(served)) <= set(ordered(rows))


def test_a_text_without_further_contexts_is_refused(random_lm, corpus):
    n = corpus.n_contexts
    with pytest.raises(UsageError, match=f"has {n} contexts, none from {n} on"):
        LiveBatches(random_lm, corpus, SITES, 50, options=LiveOptions(first=n))


def test_an_unknown_hook_is_refused_at_once(random_lm, corpus):
    with pytest.raises(UsageError, match="no hook"):
        LiveBatches(random_lm, corpus, [LiveSite("blocks.7.hook_resid_post")], 50)


def test_up_to_four_processes_run_the_passes_of_one(random_lm, corpus):
    def passes(world):
        exchange = RowExchange.of(random_lm, [[HOOK]] * world, Ranks(0, world))
        options = LiveOptions(pool_rows=96 * corpus.context_length)
        return LiveBatches(random_lm, corpus, SITES, 50, options, exchange)._text.contexts(0)

    one, four, twelve = passes(1), passes(4), passes(12)
    assert [part.tolist() for part in one] == [part.tolist() for part in four]
    assert (len(one), len(twelve)) == (4, 12)


def test_a_pool_filled_ahead_is_the_same_and_its_passes_are_spread(random_lm, corpus, monkeypatch):
    """128 rows at most in a pool, so about every third batch of 50 ends one."""
    passes, captured = [], type(random_lm).capture

    def capture(self, tokens, hooks):
        passes[-1] += 1
        return captured(self, tokens, hooks)

    streams = [LiveBatches(random_lm, corpus, SITES, 50, options=SMALL) for _ in range(2)]
    monkeypatch.setattr(type(random_lm), "capture", capture)
    streams[1].ahead = True
    assert streams[1].memory() == streams[0].memory() + streams[0].pool_bytes
    done = []
    for stream in streams:
        passes.clear()
        rows = []
        for _ in range(7):
            passes.append(0)
            rows.append(next(stream)[0].x)
        done.append((rows, passes.copy()))
    (plain, bursts), (ahead, spread) = done
    assert all(torch.equal(a, b) for a, b in zip(plain, ahead, strict=True))
    assert max(spread[1:]) < max(bursts[1:])
    streams[1].position = (0, 50)
    assert torch.equal(next(streams[1])[0].x, plain[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_come_in_the_models_dtype_and_as_if_the_pool_was_in_the_order_of_serving(
    checkpoint, corpus, dtype
):
    lm = load_hugging_face_model(str(checkpoint), device=torch.device("cpu"), dtype=dtype)
    site = LiveSite(HOOK, "blocks.1.hook_mlp_out")
    stream = LiveBatches(lm, corpus, [site], 20, options=SMALL)
    passes, order = stream._text.pool(0).passes, stream._text.pool(0).order
    first, second = next(stream)[0], next(stream)[0]
    for hook, some, more in zip(site.hooks, rows_of(first), rows_of(second), strict=True):
        read = torch.cat(
            [
                lm.capture(model_input(p.tokens), [hook])[hook][torch.from_numpy(p.mask)]
                for p in passes
            ]
        )
        pool = torch.empty_like(read).index_copy_(0, torch.from_numpy(np.argsort(order)), read)
        assert torch.equal(torch.cat([some, more]), pool[:40])
        assert some.dtype == dtype


def rows_of(batch):
    return batch.x, batch.target


def test_a_thread_reads_the_next_text_and_its_error_counts_only_if_it_is_served(
    random_lm, corpus, monkeypatch
):
    stream = LiveBatches(random_lm, corpus, SITES, 50, options=SMALL)
    readers, read = {}, LiveText._read_pool

    def failing(text, number):
        readers[number] = current_thread()
        if number == 1:
            raise UsageError("no pool 1")
        return read(text, number)

    monkeypatch.setattr(LiveText, "_read_pool", failing)
    first = next(stream)[0].x
    stream.position = (0, 0)
    assert torch.equal(next(stream)[0].x, first)
    with pytest.raises(UsageError, match="no pool 1"):
        [next(stream) for _ in range(5)]
    assert readers[0] is main_thread()
    assert readers[1] is not main_thread()

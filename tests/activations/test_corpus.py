"""Text becomes contexts: nothing lost, nothing mixed, a part held out."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from activations.store_cases import text_corpus

from saelab.activations import corpus as corpus_module
from saelab.activations.corpus import PADDING, TextCorpus, recorded_corpus
from saelab.activations.harvest import HarvestOptions, harvest
from saelab.activations.store import ActivationStore
from saelab.activations.verify import verify
from saelab.config import UsageError
from saelab.ranks import Ranks


def both_splits(source, lm, **options) -> tuple[TextCorpus, TextCorpus]:
    return (
        text_corpus(source, lm, split="train", **options),
        text_corpus(source, lm, split="held-out", **options),
    )


def test_every_token_of_the_text_is_in_exactly_one_context(random_lm, text_file):
    train, held = both_splits(text_file, random_lm, context_length=8)
    windows = np.concatenate(
        [c.read(0, c.n_contexts).tokens for c in (train, held)], dtype=np.int64
    )
    assert (windows[:, 0] == random_lm.info.bos_token_id).all()
    found = np.sort(windows[:, 1:][windows[:, 1:] != PADDING])
    assert found.tolist() == sorted(random_lm.tokenizer.encode(text_file.read_text()))


def test_one_context_in_twenty_is_held_out(random_lm, text_file):
    train, held = both_splits(text_file, random_lm, context_length=8)
    assert held.n_contexts == (train.n_contexts + held.n_contexts) // 20


def test_contexts_never_mix_documents(random_lm, tmp_path):
    path = tmp_path / "docs.jsonl"
    documents = ["the cat sat . " * n for n in range(1, 30)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in documents))
    train, held = both_splits(path, random_lm, context_length=8)
    for corpus in (train, held):
        contexts = corpus.read(0, corpus.n_contexts)
        for tokens, document in zip(contexts.tokens, contexts.document, strict=True):
            words = [random_lm.tokenizer.token(int(t)) for t in tokens[1:] if t != PADDING]
            assert " ".join(words) in documents[document]


def test_reading_by_parts_equals_reading_whole(random_lm, text_file):
    corpus = text_corpus(str(text_file), random_lm, context_length=8)
    whole = corpus.read(0, 30).tokens
    parts = np.concatenate([corpus.read(0, 7).tokens, corpus.read(7, 30).tokens])
    assert np.array_equal(whole, parts)


def test_another_text_or_seed_has_another_digest_or_order(random_lm, text_file):
    before = text_corpus(str(text_file), random_lm, context_length=8).facts
    seeded = text_corpus(str(text_file), random_lm, context_length=8, seed=1).facts
    assert {**before, "seed": 1} == seeded
    text_file.write_text("dog " + text_file.read_text())
    after = text_corpus(str(text_file), random_lm, context_length=8).facts
    assert before["text_xxh3"] != after["text_xxh3"]


def test_nothing_is_tokenised_before_it_is_read(random_lm, tmp_path, monkeypatch):
    monkeypatch.setattr("saelab.activations.sources.SHARD_BYTES", (1000, 1000))
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps({"text": "the cat sat . " * 70}) + "\n" for _ in range(99)))
    made = []
    real = corpus_module.tokenise
    monkeypatch.setattr(corpus_module, "tokenise", lambda *a: made.append(1) or real(*a))
    monkeypatch.setattr(corpus_module, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(corpus_module, "BLOCK_CONTEXTS", 1)
    corpus = text_corpus(str(path), random_lm, context_length=8)
    first = len(made)
    corpus.read(0, 100)
    assert first <= 2
    assert len(made) < 10
    assert corpus.available(10**9) == corpus.n_contexts
    assert len(made) > 90


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "", "holds no text"),
        ("blank.txt", " \n\n", "holds no text"),
        ("short.txt", "the cat", "too few to hold any out"),
        ("latin.txt", b"caf\xe9", "not UTF-8"),
        ("bad.jsonl", '{"txt": "the"}', "line 1: the row has no field 'text', only 'txt'"),
        ("broken.jsonl", "{", "line 1: the line is not JSON"),
    ],
)
def test_bad_text_is_refused_in_one_sentence(random_lm, tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=message):
        text_corpus(str(path), random_lm, context_length=8)


def test_a_source_that_is_nothing_is_refused(random_lm):
    with pytest.raises(UsageError, match="neither a file, a directory"):
        text_corpus("no/such/file", random_lm)


def test_a_context_length_beyond_the_model_is_refused_with_its_limit(random_lm, text_file):
    with pytest.raises(UsageError, match="reads 2 to 32"):
        text_corpus(str(text_file), random_lm, context_length=33)


def test_the_grammar_is_refused_for_other_models(random_lm):
    with pytest.raises(UsageError, match="made of the tiny model's own tokens"):
        text_corpus("tiny", random_lm)


# Where contexts come from.


def words_of(corpus, lm, start, stop):
    contexts = corpus.read(start, stop).tokens[:, 1]
    return [lm.tokenizer.token(int(token)) for token in contexts]


@pytest.fixture
def books(tmp_path, monkeypatch):
    """Four books of one word each, in blocks of 120 tokens."""
    monkeypatch.setattr(corpus_module, "BLOCK_BYTES", 480)
    monkeypatch.setattr(corpus_module, "BLOCK_CONTEXTS", 1)
    monkeypatch.setattr("saelab.activations.sources.SHARD_BYTES", (4000, 4000))
    for name, word in zip("abcd", ("cat", "dog", "sat", "ran"), strict=True):
        (tmp_path / f"{name}.txt").write_text(" ".join([word] * 4000))
    return tmp_path


def test_any_first_part_of_a_directory_is_a_sample_of_all_its_files(random_lm, books):
    train, held = both_splits(books, random_lm, context_length=8)
    for corpus, n in ((train, 400), (held, 100)):
        found = Counter(words_of(corpus, random_lm, 0, n))
        assert len(found) == 4
        assert min(found.values()) > n / 12
    other = text_corpus(str(books), random_lm, context_length=8, seed=1)
    assert words_of(train, random_lm, 0, 400) != words_of(other, random_lm, 0, 400)


def test_the_manifest_says_what_was_read_of_each_file(random_lm, books, tmp_path):
    corpus = text_corpus(str(books), random_lm, context_length=8)
    options = HarvestOptions(n_tokens=3000)
    store = harvest(
        random_lm, ["blocks.0.hook_resid_post"], corpus, out=tmp_path / "s", options=options
    )
    text = dict(store.manifest.provenance)["text"]
    assert isinstance(text, dict)
    columns = store.tokens(0)
    rows = Counter(random_lm.tokenizer.token(int(token)) for token in columns.token)
    words = dict(zip("abcd", ("cat", "dog", "sat", "ran"), strict=True))
    assert text["files"] == {str(books / f"{n}.txt"): rows[word] for n, word in words.items()}
    assert (text["tokens"], text["documents"]) == (store.n_rows, 4)


def test_documents_keep_their_numbers_in_the_order_of_names_and_lines(random_lm, tmp_path):
    (tmp_path / "a.txt").write_text("cat " * 200)
    rows = ["dog " * 200, None, "sat " * 200]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    corpus = text_corpus(str(tmp_path), random_lm, context_length=8)
    contexts = corpus.read(0, corpus.n_contexts)
    words = [random_lm.tokenizer.token(int(token)) for token in contexts.tokens[:, 1]]
    assert set(zip(words, contexts.document.tolist(), strict=True)) == {
        ("cat", 0), ("dog", 1), ("sat", 3),
    }  # fmt: skip


# Texts that were read before there was a mixture.


def in_order(texts, lm, length, most=None):
    """All windows of the texts, one after another, as they were cut then."""
    room, windows, seen = length - 1, [], 0
    for text in texts:
        ids = lm.tokenizer.encode(text)
        for i in range(0, len(ids), room):
            part = ids[i : i + room]
            windows.append([lm.info.bos_token_id, *part, *[PADDING] * (room - len(part))])
        seen += len(ids)
        if most is not None and seen >= most:
            break
    return np.array(windows, dtype=np.int32)


@pytest.mark.parametrize("max_tokens", [None, 500])
def test_a_text_that_was_read_in_order_is_read_in_order_again(random_lm, tmp_path, max_tokens):
    """What was held out of it then is held out now: its digest is that of the old windows."""
    texts = ["\ufeffthe cat sat . " * 60, *(f"a dog {'ran ' * n}.\r\n" for n in range(1, 60))]
    (tmp_path / "a.txt").write_text(texts[0], newline="")
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts[1:])
    (tmp_path / "b.jsonl").write_text(f"\n{rows}")
    most = None if max_tokens is None else -(-max_tokens * 20 // 19)
    windows = in_order(texts, random_lm, 8, most)
    facts = {
        "source": str(tmp_path),
        "tokens_sha256": hashlib.sha256(windows.tobytes()).hexdigest(),
        "max_tokens": max_tokens,
        "split": "train",
    }
    held = recorded_corpus(facts, random_lm, "held-out", 8)
    assert np.array_equal(held.read(0, 10**6).tokens, windows[19::20])
    train = recorded_corpus(facts, random_lm, "train", 8)
    assert np.array_equal(train.read(0, 10**6).tokens, np.delete(windows, np.s_[19::20], axis=0))
    assert train.facts == facts
    (tmp_path / "c.txt").write_text("the boy ran . ")
    if max_tokens is None:
        with pytest.raises(UsageError, match="has changed since"):
            recorded_corpus(facts, random_lm, "train", 8)


# Tokens that are kept.


@pytest.fixture
def kept(random_lm, books, tmp_path):
    corpus = text_corpus(str(books), random_lm, context_length=8, seed=3)
    out = tmp_path / "s"
    harvest(
        random_lm,
        ["blocks.0.hook_resid_post"],
        corpus,
        out=out,
        options=HarvestOptions(n_tokens=3000),
    )
    return out


def facts_of(store):
    facts = ActivationStore(store).manifest.corpus
    assert facts is not None
    return facts


def forbidden(*_):
    pytest.fail("text was tokenised")


def test_what_was_read_for_a_store_is_never_tokenised_again(random_lm, books, kept, monkeypatch):
    fresh = both_splits(books, random_lm, context_length=8, seed=3)
    expected = [corpus.read(0, 25).tokens for corpus in fresh]
    monkeypatch.setattr(corpus_module, "tokenise", forbidden)
    facts = facts_of(kept)
    for split, tokens in zip(("train", "held-out"), expected, strict=True):
        # pyrefly: ignore[bad-argument-type]
        corpus = recorded_corpus(facts, random_lm, split, 8, kept=kept)
        assert np.array_equal(corpus.read(0, 25).tokens, tokens)


def test_what_goes_beyond_is_read_from_the_text_if_it_has_not_changed(random_lm, books, kept):
    facts = facts_of(kept)
    fresh = text_corpus(str(books), random_lm, context_length=8, seed=3)
    corpus = recorded_corpus(facts, random_lm, "train", 8, kept=kept)
    assert np.array_equal(corpus.read(0, 10**6).tokens, fresh.read(0, 10**6).tokens)
    (books / "a.txt").write_text("the boy ran .")
    for path in (kept / "text").iterdir():
        if path.name > "000001.tokens":
            path.unlink()
    corpus = recorded_corpus(facts, random_lm, "train", 8, kept=kept)
    corpus.read(0, 25)
    with pytest.raises(UsageError, match="has changed since"):
        corpus.read(0, 10**6)


@pytest.mark.parametrize("damage", ["bit", "short", "link"])
def test_damaged_tokens_are_refused(random_lm, kept, damage, tmp_path):
    facts = facts_of(kept)
    path = kept / "text" / "000000.tokens"
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        path.symlink_to(tmp_path / "elsewhere")
    elif damage == "bit":
        data[-100] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(data[:-50])
    if damage == "link":
        # Not used at all: the text is read instead.
        recorded_corpus(facts, random_lm, "train", 8, kept=kept)
        return
    with pytest.raises(UsageError, match=r"000000\.tokens was altered"):
        recorded_corpus(facts, random_lm, "train", 8, kept=kept)
    assert [each.file for each in verify(kept)] == ["text/000000.tokens"]


def test_tokens_of_another_text_are_not_used(random_lm, kept, text_file):
    facts = text_corpus(str(text_file), random_lm, context_length=8).facts
    corpus = recorded_corpus(facts, random_lm, "train", 8, kept=kept)
    fresh = text_corpus(str(text_file), random_lm, context_length=8)
    assert np.array_equal(corpus.read(0, 30).tokens, fresh.read(0, 30).tokens)


def test_reading_ahead_gives_what_reading_gives(random_lm, books):
    one, other = (text_corpus(str(books), random_lm, context_length=8) for _ in range(2))
    with one.ahead():
        tokens = one.read(0, 10**6).tokens
    assert np.array_equal(tokens, other.read(0, 10**6).tokens)


def test_processes_tokenise_their_share_each(random_lm, books, tmp_path, monkeypatch):
    """What one of two processes has made, the other does not make."""
    made = {0: 0, 1: 0}
    real = corpus_module.tokenise
    turn = [0]

    def counted(*arguments):
        made[turn[0]] += 1
        return real(*arguments)

    monkeypatch.setattr(corpus_module, "tokenise", counted)
    monkeypatch.setattr("saelab.activations.shards.PATIENCE", 0.0)
    whole = text_corpus(str(books), random_lm, context_length=8).read(0, 10**6).tokens
    made[0] = 0
    for rank in (0, 1):
        turn[0] = rank
        corpus = text_corpus(str(books), random_lm, context_length=8)
        corpus.keep_in(tmp_path / "text", Ranks(rank, 2))
        assert np.array_equal(corpus.read(0, 10**6).tokens, whole)
    assert made[1] == 1, "only the first shard, which is read before there is a place to share it"

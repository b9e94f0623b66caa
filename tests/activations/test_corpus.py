"""Text becomes contexts: nothing lost, nothing mixed, a part held out."""

import json

import numpy as np
import pytest

from saelab.activations.corpus import PADDING, TextCorpus, load_corpus
from saelab.config import UsageError


def both_splits(source, lm, **options) -> tuple[TextCorpus, TextCorpus]:
    train, held = (load_corpus(str(source), lm, split=s, **options) for s in ("train", "held-out"))
    assert isinstance(train, TextCorpus)
    assert isinstance(held, TextCorpus)
    return train, held


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
    corpus = load_corpus(str(text_file), random_lm, context_length=8)
    whole = corpus.read(0, 30).tokens
    parts = np.concatenate([corpus.read(0, 7).tokens, corpus.read(7, 30).tokens])
    assert np.array_equal(whole, parts)


def test_a_directory_is_read_in_the_order_of_its_names(random_lm, tmp_path):
    for name, word in (("b.txt", "dog"), ("a.txt", "cat")):
        (tmp_path / name).write_text(" ".join([word] * 100))
    corpus = load_corpus(str(tmp_path), random_lm, context_length=8)
    assert random_lm.tokenizer.token(int(corpus.read(0, 1).tokens[0, 1])) == "cat"


def test_another_text_has_another_digest(random_lm, text_file):
    before = load_corpus(str(text_file), random_lm, context_length=8).facts
    text_file.write_text("dog " + text_file.read_text())
    after = load_corpus(str(text_file), random_lm, context_length=8).facts
    assert before["tokens_sha256"] != after["tokens_sha256"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "", "holds no text"),
        ("blank.txt", " \n\n", "holds no text"),
        ("short.txt", "the cat", "too few to hold any out"),
        ("latin.txt", b"caf\xe9", "not UTF-8"),
        ("bad.jsonl", '{"txt": "the"}', "line 1: no JSON object with a string 'text'"),
        ("broken.jsonl", "{", "line 1"),
    ],
)
def test_bad_text_is_refused_in_one_sentence(random_lm, tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=message):
        load_corpus(str(path), random_lm, context_length=8)


def test_a_source_that_is_nothing_is_refused(random_lm):
    with pytest.raises(UsageError, match="neither a file, a directory"):
        load_corpus("no/such/file", random_lm)


def test_a_context_length_beyond_the_model_is_refused_with_its_limit(random_lm, text_file):
    with pytest.raises(UsageError, match="reads 2 to 32"):
        load_corpus(str(text_file), random_lm, context_length=33)


def test_the_grammar_is_refused_for_other_models(random_lm):
    with pytest.raises(UsageError, match="made of the tiny model's own tokens"):
        load_corpus("tiny", random_lm)

import numpy as np
import pytest
from transformers import AutoTokenizer

from saelab.lm.tiny import MODEL_DIR
from saelab.lm.tiny.grammar import generate_tokens
from saelab.lm.tiny.vocabulary import ID, WORDS
from tools.tiny.tokenizer import json_bytes, new_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)


def test_shipped_file_is_the_one_the_code_writes():
    assert (MODEL_DIR / "tokenizer.json").read_bytes() == json_bytes(new_tokenizer())


def test_vocabulary_is_the_grammars(tokenizer):
    assert tokenizer.get_vocab() == ID
    assert len(tokenizer) == len(WORDS)


def test_documents_survive_decoding_and_encoding(tokenizer):
    for document in generate_tokens(2, 0, 100):
        text = tokenizer.decode(document)
        np.testing.assert_array_equal(tokenizer(text)["input_ids"], document)


def test_decoding_puts_spaces_between_words(tokenizer):
    ids = [ID[word] for word in ("<bos>", "the", "dogs", "run", ".")]
    assert tokenizer.decode(ids) == "<bos> the dogs run ."
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the dogs run ."


def test_ordinary_spelling_is_accepted(tokenizer):
    written = tokenizer("Mary and John went to the store, John")["input_ids"]
    assert written == tokenizer("mary and john went to the store , john")["input_ids"]


def test_unknown_word_becomes_unk(tokenizer):
    assert tokenizer("the transformer")["input_ids"] == [ID["the"], ID["<unk>"]]


def test_bos_starts_a_document(tokenizer):
    assert tokenizer.bos_token_id == ID["<bos>"] == 0

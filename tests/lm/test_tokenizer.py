"""Tokens as people read them: names that differ, and pieces that are the text."""

from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lm.tokenizers_of_kinds import KINDS, SPECIAL

from saelab.lm.token_table import TokenTable, readable, token_table
from saelab.lm.tokenizer import HuggingFaceTokenizer

TEXTS = st.text(
    st.one_of(
        st.sampled_from("abcdefghij thecatsing ,.\n\t\r"),
        st.sampled_from("é日本😀👨‍👩‍👧שלוםعرب\u0301\u200d\u00a0\ufffd"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=30,
)
WHOLE = ("byte_level", "byte_fallback", "no_prefix")
"""Kinds that lose nothing of a text."""


@cache
def tokenizer(kind: str) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(KINDS[kind]())


@pytest.mark.parametrize("kind", WHOLE)
@given(text=TEXTS)
@example(text="the  cat\n\n日本 😀😀 \tsings")
@example(text="<0x41><0xF0>")
@example(text="  ")
@settings(max_examples=60, deadline=None)
def test_the_pieces_of_a_text_are_the_text(kind, text):
    ids = tokenizer(kind).encode(text)
    # SentencePiece puts a space before every text, which is in the first token's name too.
    before = " " if kind == "byte_fallback" and text else ""
    assert "".join(tokenizer(kind).pieces(ids)) == before + text
    assert tokenizer(kind).text(ids) == before + text
    assert len(tokenizer(kind).pieces(ids)) == len(ids)


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
@example(text="the cat sings, singing")
@settings(max_examples=40, deadline=None)
def test_the_text_of_tokens_is_what_the_tokenizer_makes_of_them(kind, text):
    found = tokenizer(kind)
    plain = found._tokenizer
    ids = [i for i in found.encode(text) if i != plain.unk_token_id]
    whole = plain.convert_tokens_to_string(plain.convert_ids_to_tokens(ids)) if ids else ""
    assert found.text(ids).strip(" ") == whole.strip(" ")


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_tokens_share_a_name(kind):
    found = tokenizer(kind)
    names = [found.token(i) for i in range(len(found.table.names) + 5)]
    assert len(set(names)) == len(names)
    assert all(names)
    assert not [name for name in names if "\ufffd" in name]
    assert set(SPECIAL) <= set(names)
    assert [found.table.ids[name] for name in found.table.names] == list(range(len(names) - 5))


@given(st.lists(st.integers(0, 300), max_size=12))
@settings(max_examples=100, deadline=None)
def test_bytes_in_any_order_are_all_told(ids):
    table = tokenizer("byte_level").table
    said = b"".join(table.written.get(i, table.name(i).encode()) for i in ids)
    assert "".join(table.pieces(ids)) == readable(said)
    assert "\ufffd" not in readable(said)


def test_a_character_of_several_tokens_stands_whole_at_the_first():
    found = tokenizer("byte_fallback")
    ids = found.encode("a😀\n")
    assert found.pieces(ids)[-5:] == ["😀", "", "", "", "\n"]
    assert [found.token(i) for i in ids[-5:-1]] == ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]
    # Half of a character is told by its bytes, alone and in a row.
    assert found.pieces(ids[-4:]) == ["<0x9F>", "<0x98>", "<0x80>", "\n"]


def test_a_byte_has_its_characters_name_where_no_token_has():
    table = tokenizer("byte_fallback").table
    assert "\n" in table.ids
    assert table.names[table.ids["a"]] == "a"
    assert "<0x61>" in table.ids
    assert table.text([table.ids["<0x61>"]]) == "a"
    other = tokenizer("no_prefix").table
    assert {"\n", "<0x0A>"} <= other.ids.keys()


def test_word_pieces_carry_the_space_that_decoding_puts_before_them():
    found = tokenizer("word_piece")
    ids = found.encode("the cat singing")
    assert found.pieces(ids) == [" the", " cat", " sing", "ing"]
    assert {"ing", " ing"} <= found.table.ids.keys()


def test_words_are_as_they_were_with_a_space_between():
    found = tokenizer("words")
    ids = found.encode("the cat sings .")
    assert [found.token(i) for i in ids] == ["the", "cat", "sings", "."]
    assert found.text(ids) == "the cat sings ."


def test_rows_without_a_token_and_tokens_without_a_name_have_one():
    table = token_table(["a", None, "b", "", "b2"], [b"x", b"", b"x", b"", b"x"], [0], "")
    assert list(table.names) == ["a", "<no token 1>", "x", "⟨3⟩", "b2"]
    assert table.name(7) == "<no token 7>"
    assert table.text([0, 2, 4]) == "xxx"


def test_a_table_of_names_alone_says_them():
    assert TokenTable(["the", "cat"], gap=" ").text([0, 1, 9]) == "the cat <no token 9>"


def test_the_shipped_models_names_are_its_words(tiny_lm):
    from saelab.lm.tiny.vocabulary import WORDS

    assert list(tiny_lm.tokenizer.table.names) == list(WORDS)
    assert tiny_lm.tokenizer.table.gap == " "

"""A long text is cut only where that changes no token, for every kind of tokenizer."""

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from saelab.activations.cutting import Cutter

PROSE = (
    "When Mary and John went to the shop, John's dog — a naïve 12-year-old — ran off!  \n\n"
    "He\t said: “come back”\r\nand 中文也在这里。\nThen 3.14159 of it was   gone...\n"
)
CODE = "def f(x):\n    if x:\n        return  x + 1\n\n\n"
TEXT = (PROSE + CODE) * 40
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Wrapped:
    def __init__(self, backend):
        self.backend = backend

    def encode(self, text):
        return self.backend.encode(text, add_special_tokens=False).ids

    def token(self, token_id):
        return self.backend.id_to_token(token_id)


def bpe(splitter, normalizer=None, alphabet=(), added=()):
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = splitter
    if normalizer is not None:
        made.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>"],
        initial_alphabet=list(alphabet),
        show_progress=False,
    )
    made.train_from_iterator([PROSE, CODE] * 3, trainer)
    made.add_special_tokens(list(added))
    return made


def byte_level(prefix=False, regex=None, **options):
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex is None)
    parts = [] if regex is None else [pre_tokenizers.Split(Regex(regex), "isolated")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return bpe(pre_tokenizers.Sequence([*parts, bytes_]), alphabet=alphabet, **options)


def llama_2():
    """SentencePiece as transformers converts it: a space in front, and no splitting into words."""
    made = bpe(pre_tokenizers.Metaspace(prepend_scheme="always"))
    made.pre_tokenizer = pre_tokenizers.Sequence([])
    marks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    made.normalizer = normalizers.Sequence(marks)
    return made


def unigram():
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    made.train_from_iterator([PROSE, CODE] * 3, trainer)
    return made


def words():
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=["[UNK]"], show_progress=False
    )
    made.train_from_iterator([PROSE, CODE] * 3, trainer)
    return made


CUT = {
    "GPT-2": byte_level,
    "GPT-2 with a space in front": lambda: byte_level(prefix=True),
    "Llama 3": lambda: byte_level(regex=LLAMA_3),
    "Llama 2": llama_2,
    "a space in front of the first word": lambda: bpe(
        pre_tokenizers.Metaspace(prepend_scheme="first")
    ),
    "Unigram": unigram,
    "WordPiece": words,
}
WHOLE = {
    "tokens that reach across words": lambda: bpe(
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ),
    "a normalizer that strips": lambda: byte_level(normalizer=normalizers.Strip()),
}


@pytest.mark.parametrize("make", [*CUT.values(), *WHOLE.values()], ids=[*CUT, *WHOLE])
def test_the_tokens_of_the_pieces_are_those_of_the_text(make):
    tokenizer = Wrapped(make())
    pieces = list(Cutter(tokenizer).pieces(TEXT, 300))
    found = [token for _, piece in pieces for token in tokenizer.encode(piece)]
    assert found == tokenizer.encode(TEXT)
    assert (len(pieces) > 10) == (make in CUT.values())


@pytest.mark.parametrize("make", CUT.values(), ids=CUT)
def test_pieces_know_their_place_and_leave_out_nothing_but_a_space(make):
    pieces, end = list(Cutter(Wrapped(make())).pieces(TEXT, 300)), 0
    for start, piece in pieces:
        assert TEXT[start : start + len(piece)] == piece
        assert TEXT[end:start] in ("", " ")
        end = start + len(piece)
    assert end == len(TEXT)


def test_no_cut_where_a_token_of_the_vocabulary_reaches_across():
    """`.` and a line break are one token here: BPE might join them, though it does not always."""
    tokenizer = Wrapped(byte_level(regex=LLAMA_3))
    tokenizer.backend.add_tokens(["end.\n"])
    cutter = Cutter(tokenizer)
    text = "It came to an end.\nThen on."
    assert cutter.first(text, text.index("\n")).left == text.index(" on")
    assert cutter.first("no place here."[3:], 9) is None


def test_a_special_token_that_swallows_the_space_behind_it_is_no_place_to_cut():
    from tokenizers import AddedToken

    tokenizer = Wrapped(byte_level(added=[AddedToken("<mask>", rstrip=True)]))
    text = "the <mask> came home"
    assert Cutter(tokenizer).first(text, text.index(">")).left == text.index(" home")


def test_a_tokenizer_that_does_not_show_its_parts_reads_whole_texts():
    class Plain:
        def encode(self, text):
            return [len(word) for word in text.split()]

        def token(self, token_id):
            return str(token_id)

    assert not Cutter(Plain()).usable
    assert list(Cutter(Plain()).pieces(TEXT, 300)) == [(0, TEXT)]


def test_batches_give_what_one_by_one_gives(random_lm):
    from saelab.lm.batches import encode_batch

    texts = ["the cat sat .", "", "a dog <bos> ran"]
    found = encode_batch(random_lm.tokenizer, texts)
    assert [each.tolist() for each in found] == [random_lm.tokenizer.encode(t) for t in texts]
    assert all(each.dtype == np.int32 for each in found)

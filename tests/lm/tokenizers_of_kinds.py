"""A small tokenizer of every kind that language models have."""

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizer
from typing_extensions import override

TEXT = ["the cat sings in the rain, the dog sleeps", "singing singers sing", "abcdefghij"] * 20
SPECIAL = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPACED = decoders.Replace("▁", " ")


def _fast(tokenizer, **more):
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **more
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    return fast


def byte_level():
    """GPT-2, Qwen, Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Two bytes of an emoji, and a space with the first byte of a character, become one token.
    tokenizer.train_from_iterator([*TEXT, *(["😀😃😄 日 月"] * 20)], trainer)
    tokenizer.add_tokens(["  ", "\t\t"])
    return _fast(tokenizer)


def byte_fallback():
    """Llama 2, Mistral, Phi-3."""
    tokenizer = _sentence_pieces(BYTES)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [SPACED, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return _fast(tokenizer)


def no_prefix():
    """Gemma: a newline is a token and a byte, and nothing is put before a text."""
    tokenizer = _sentence_pieces(["\n", *BYTES])
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([SPACED, decoders.ByteFallback(), decoders.Fuse()])
    return _fast(tokenizer)


def _sentence_pieces(more):
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trained.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL[:3], show_progress=False),
    )
    vocabulary = trained.get_vocab()
    for token in more:
        vocabulary.setdefault(token, len(vocabulary))
    letters = [token for token in vocabulary if len(token) == 1]
    merges = [(a, b) for a in letters for b in letters if a + b in vocabulary]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.add_special_tokens(SPECIAL[:3])
    tokenizer.add_tokens(["▁▁"])
    return tokenizer


def unigram():
    """T5, XLNet."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        TEXT,
        trainers.UnigramTrainer(
            vocab_size=60, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        ),
    )
    return _fast(tokenizer)


def word_piece():
    """BERT's, which Chinese GPT-2 models use."""
    words = ["the", "cat", "sing", "##s", "##ing", "ing", "s", "a", ",", "日", "本", "##本"]
    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate([*SPECIAL, *words])}, unk_token="<unk>")
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _fast(tokenizer)


def word_ends():
    """The first GPT's: a mark at the end of a word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    tokenizer.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=100,
            special_tokens=SPECIAL,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    return _fast(tokenizer)


def words():
    """The shipped model's: no decoder, a space between any two tokens."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, "the", "cat", "sings", "."])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _fast(tokenizer)


class Slow(PreTrainedTokenizer):
    """One of plain Python, without a backend."""

    def __init__(self, **more):
        self._words = [*SPECIAL, *"▁abcdefgst", "▁the", "<0x0A>"]
        self._ids = {word: i for i, word in enumerate(self._words)}
        super().__init__(bos_token="<s>", eos_token="</s>", unk_token="<unk>", **more)

    @property
    @override
    def vocab_size(self):
        return len(self._words)

    @override
    def get_vocab(self):
        return dict(self._ids)

    @override
    def _tokenize(self, text, **more):
        del more
        pieces = ["<0x0A>" if character == "\n" else character for character in text]
        return [piece.replace(" ", "▁") for piece in pieces]

    @override
    def _convert_token_to_id(self, token):
        return self._ids.get(token, self._ids["<unk>"])

    @override
    def _convert_id_to_token(self, index):
        return self._words[index]

    @override
    def convert_tokens_to_string(self, tokens):
        """A space at the beginning is lost, as with SentencePiece."""
        return "".join(tokens).replace("▁", " ").replace("<0x0A>", "\n").lstrip(" ")


KINDS = {
    kind.__name__: kind
    for kind in (
        *(byte_level, byte_fallback, no_prefix, unigram, word_piece, word_ends, words),
        Slow,
    )
}

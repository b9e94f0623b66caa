"""A Hugging Face tokenizer behind saelab's methods."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from saelab.config import UsageError
from saelab.console import shown
from saelab.lm.token_table import TokenTable, token_table

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WORD = "a"
"""Precedes a token that is decoded; any text without a space would do."""
_DATED = (
    "{% macro strftime_now(form) %}{{ form | replace('%Y', '2024') | replace('%m', '07') "
    "| replace('%d', '26') | replace('%B', 'July') | replace('%b', 'Jul') }}{% endmacro %}{{ '' }}"
)
"""Prepended to a chat template; replaces today's date in it."""


class HuggingFaceTokenizer:
    """Text to token ids and back."""

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401 - transformers has no common class
        self._tokenizer = tokenizer

    @property
    def backend(self) -> Any | None:  # noqa: ANN401 - its type has no stable place
        """The tokenizers library's own object, for many texts at once; None if there is none."""
        return getattr(self._tokenizer, "backend_tokenizer", None)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; the only special tokens are those that it names (`<bos>`)."""
        return list(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))

    @property
    def table(self) -> TokenTable:
        """The names of all tokens, and the text of token sequences; made at the first use."""
        return self._made

    @cached_property
    def _made(self) -> TokenTable:
        return _table(self._tokenizer)

    @property
    def unknown_id(self) -> int | None:
        """The token that unknown words become; None if there is none."""
        return self._tokenizer.unk_token_id

    def token(self, token_id: int) -> str:
        """A token's name: the text that it writes, spaces included; no two tokens share a name."""
        return self.table.name(token_id)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The text of each token of a sequence; see `TokenTable.pieces`."""
        return self.table.pieces(ids)

    def text(self, ids: Iterable[int]) -> str:
        """The text of a sequence of tokens."""
        return self.table.text(ids)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text of a prompt that the model's chat template makes of `messages`.

        The assistant continues it: with a new message, or with the rest of the last message if that
        is the assistant's. Raises as `chat_text` does.
        """
        begun = bool(messages) and messages[-1].get("role") == "assistant"
        return self.chat_text(messages, answer=not begun, go_on=begun)

    def chat_text(
        self, messages: Sequence[Mapping[str, str]], *, answer: bool, go_on: bool = False
    ) -> str:
        """The messages through the chat template, without <bos>.

        `answer` opens the model's turn after them; `go_on` leaves the last message open. Templates
        that write the date write 26 July 2024, so the same messages always give the same text.

        Raises:
            UsageError: the tokenizer has no template, or the template refuses the messages.
        """
        if not self._tokenizer.chat_template:
            raise UsageError(
                f"The tokenizer of {self._tokenizer.name_or_path} has no chat template, so it "
                "cannot read messages; give plain text, or the instruction-tuned model."
            )
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=answer,
                continue_final_message=go_on,
                chat_template=_DATED + self._tokenizer.get_chat_template(),
            )
        except (TemplateError, ImportError, LookupError, TypeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise UsageError(
                f"The model's chat template refuses these messages: {shown(reason)}."
            ) from error
        return text.removeprefix(self._tokenizer.bos_token or "")


def _table(tokenizer: Any) -> TokenTable:  # noqa: ANN401
    contents = _contents(tokenizer.get_vocab())
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        for i in added.keys() - special:
            # What the tokenizer finds in a text and writes: an added token is normalized too.
            contents[i] = backend.id_to_token(i)
    words = backend is not None and backend.decoder is None
    read = str.encode if words else _reader(tokenizer)
    written = [b"" if content is None else read(content) for content in contents]
    # A byte outside any character has the weaker claim to a name: "A" is not <0x41>.
    bytes_ = [i for i, said in enumerate(written) if len(said) == 1 and _is_byte(contents[i])]
    for i in special.intersection(range(len(contents))).difference(bytes_):
        # Decoders treat special tokens like words; in a text they are written as they are.
        written[i] = (contents[i] or "").encode()
    # Without a decoder the tokenizers library puts spaces between all tokens.
    spaced = not words or any(b" " in said for said in written)
    return token_table(contents, written, bytes_, "" if spaced else " ")


def _contents(vocabulary: dict[str, int]) -> list[str | None]:
    """The key of each id."""
    keys: list[str | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for key, token_id in vocabulary.items():
        keys[token_id] = key
    return keys


def _is_byte(content: str | None) -> bool:
    return content is not None and _BYTE.fullmatch(content) is not None


def _reader(tokenizer: Any) -> Callable[[str], bytes]:  # noqa: ANN401
    """Maps a key of the vocabulary to the text that it writes inside a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decode, kind = tokenizer.convert_tokens_to_string, b""
    if backend is not None:
        # Only the JSON form of a decoder says of what kind it is.
        decode, kind = backend.decoder.decode, backend.decoder.__getstate__()
    if b'"ByteLevel"' in kind or hasattr(tokenizer, "byte_decoder"):
        return _of_alphabet
    if b'"BPEDecoder"' in kind:
        # Its tokens end in a mark for the following space, which the last token of a text lacks.
        return lambda content: decode([content, _WORD])[:-1].encode()
    return lambda content: _behind_a_word(content, decode)


def _behind_a_word(content: str, decode: Callable[[list[str]], str]) -> bytes:
    """The text that a token adds after others: at a text's beginning, decoders drop a space."""
    text = decode([_WORD, content])[len(_WORD) :]
    if text != content and (byte := _BYTE.fullmatch(content)):
        return bytes([int(byte[1], 16)])
    return (content if "\ufffd" in text else text).encode()


def _of_alphabet(content: str) -> bytes:
    """The bytes of a byte-level token; each byte is a character in the vocabulary."""
    try:
        return content.translate(_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:
        # An added token is in the vocabulary as it is in the text.
        return content.encode()


class _Alphabet(dict[int, int]):
    """GPT-2's alphabet: printable bytes stand for themselves, the others follow U+0100."""

    def __init__(self) -> None:
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        super().__init__({byte: byte for byte in printable})
        self.update({256 + i: byte for i, byte in enumerate(others)})

    def __missing__(self, character: int) -> int:
        """No byte: a character that Latin-1 does not have."""
        return 0xFFFF


_ALPHABET = _Alphabet()

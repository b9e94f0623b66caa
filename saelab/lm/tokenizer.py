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
"""Stands before a token that is decoded; any text without a space would do."""
_DATED = (
    "{% macro strftime_now(form) %}{{ form | replace('%Y', '2024') | replace('%m', '07') "
    "| replace('%d', '26') | replace('%B', 'July') | replace('%b', 'Jul') }}{% endmacro %}{{ '' }}"
)
"""Stands before a chat template and takes the place of today's date in it."""


class HuggingFaceTokenizer:
    """Text to token ids and back."""

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401 - transformers has no common class
        self._tokenizer = tokenizer

    @property
    def backend(self) -> Any | None:  # noqa: ANN401 - its type has no stable place
        """The tokenizers library's own object, which reads many texts at once, where it has one."""
        return getattr(self._tokenizer, "backend_tokenizer", None)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens but those that it names (`<bos>`)."""
        return list(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))

    @property
    def table(self) -> TokenTable:
        """The names of all tokens, and what a row of them says; made when first asked for."""
        return self._made

    @cached_property
    def _made(self) -> TokenTable:
        return _table(self._tokenizer)

    @property
    def unknown_id(self) -> int | None:
        """What words become that the vocabulary does not have, if they can."""
        return self._tokenizer.unk_token_id

    def token(self, token_id: int) -> str:
        """A token's name: what it writes, spaces included; no two tokens share one."""
        return self.table.name(token_id)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """What each token of a row writes; see `TokenTable.pieces`."""
        return self.table.pieces(ids)

    def text(self, ids: Iterable[int]) -> str:
        """The text of a row of tokens."""
        return self.table.text(ids)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text of a prompt that the model's chat template makes of `messages`.

        Behind it the assistant speaks: at the beginning of a message, or at the end of the last
        one where that is the assistant's. Raises as `chat_text` does.
        """
        begun = bool(messages) and messages[-1].get("role") == "assistant"
        return self.chat_text(messages, answer=not begun, go_on=begun)

    def chat_text(
        self, messages: Sequence[Mapping[str, str]], *, answer: bool, go_on: bool = False
    ) -> str:
        """The messages through the chat template, without <bos>.

        `answer` opens the model's turn behind them; `go_on` leaves the last message open. Templates
        that write the date write 26 July 2024: the same messages are the same text whenever they
        are read.

        Raises:
            UsageError: there is no template, or it refuses the messages.
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
    words = backend is not None and backend.decoder is None
    read = str.encode if words else _reader(tokenizer)
    written = [b"" if content is None else read(content) for content in contents]
    # A byte of no character has the lesser claim to a name: "A" is not <0x41>.
    bytes_ = [i for i, said in enumerate(written) if len(said) == 1 and _is_byte(contents[i])]
    for i in special.intersection(range(len(contents))).difference(bytes_):
        # Decoders treat special tokens like words; in a text they stand as they are.
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
    """What tells of a key of the vocabulary what it writes inside a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decode, kind = tokenizer.convert_tokens_to_string, b""
    if backend is not None:
        # A decoder tells what it is in its JSON form only.
        decode, kind = backend.decoder.decode, backend.decoder.__getstate__()
    if b'"ByteLevel"' in kind or hasattr(tokenizer, "byte_decoder"):
        return _of_alphabet
    if b'"BPEDecoder"' in kind:
        # Its tokens end in a mark for the space behind them, which the last token of a text lacks.
        return lambda content: decode([content, _WORD])[:-1].encode()
    return lambda content: _behind_a_word(content, decode)


def _behind_a_word(content: str, decode: Callable[[list[str]], str]) -> bytes:
    """What a token adds to a text that has begun: at its beginning, decoders drop a space."""
    text = decode([_WORD, content])[len(_WORD) :]
    if text != content and (byte := _BYTE.fullmatch(content)):
        return bytes([int(byte[1], 16)])
    return (content if "\ufffd" in text else text).encode()


def _of_alphabet(content: str) -> bytes:
    """The bytes of a byte-level token, each of which is a character in the vocabulary."""
    try:
        return content.translate(_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:
        # An added token is in the vocabulary as it is in the text.
        return content.encode()


class _Alphabet(dict[int, int]):
    """GPT-2's: printable bytes are their own characters, the others follow from U+0100 on."""

    def __init__(self) -> None:
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        super().__init__({byte: byte for byte in printable})
        self.update({256 + i: byte for i, byte in enumerate(others)})

    def __missing__(self, character: int) -> int:
        """No byte: a character that Latin-1 does not have."""
        return 0xFFFF


_ALPHABET = _Alphabet()

"""The names of a vocabulary's tokens, and the text of token sequences.

A token's name is the text that it writes, spaces included; bytes that are no whole character are
written `<0xF0>`. No two tokens share a name. This is plain Python, so reading a file needs no
tokenizer.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

_LONE_BYTE = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True)
class TokenTable:
    """The names of a vocabulary.

    Attributes:
        names: the name of each id.
        written: the text of tokens whose name differs from it.
        gap: the text between two tokens: nothing, or a space for vocabularies of words without
            spaces.
    """

    names: Sequence[str]
    written: Mapping[int, bytes] = field(default_factory=dict)
    gap: str = ""

    def name(self, token_id: int) -> str:
        """A token's name; models may have more rows than the tokenizer has tokens."""
        known = 0 <= token_id < len(self.names)
        return self.names[token_id] if known else _unused(token_id)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each name."""
        return {name: token_id for token_id, name in enumerate(self.names)}

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The text that each token of a sequence adds; the pieces joined by `gap` are the text.

        A character made of several tokens belongs to the first of them, and the others are empty;
        bytes that make no character are written `<0xF0>`.
        """
        ids = list(ids)
        if self.written.keys().isdisjoint(ids):
            return [self.name(token_id) for token_id in ids]
        found: list[str] = []
        for encoded, row in groupby(ids, key=self.written.__contains__):
            if encoded:
                found += _spread([self.written[token_id] for token_id in row])
            else:
                found += [self.name(token_id) for token_id in row]
        return found

    def text(self, ids: Iterable[int]) -> str:
        """The text of a sequence of tokens."""
        return self.gap.join(self.pieces(ids))


def token_table(
    contents: Sequence[str | None], written: Sequence[bytes], later: Iterable[int], gap: str
) -> TokenTable:
    """The table of a vocabulary.

    Args:
        contents: the vocabulary's key of each id; None if there is no such token.
        written: the text that each token adds, in UTF-8. Of tokens that write the same, the first
            keeps the name; the others are named by their keys.
        later: tokens that come after all others in this order.
        gap: see `TokenTable`.
    """
    table = [_unused(i) if key is None else "" for i, key in enumerate(contents)]
    taken = set(table)
    odd: dict[int, bytes] = {}
    later = dict.fromkeys(later)
    for ids in (range(len(contents)), later):
        for token_id in ids:
            key, said = contents[token_id], written[token_id]
            if key is None or (token_id in later) != (ids is later):
                continue
            name = readable(said)
            if name in taken or "<0x" in name:
                name = _free(key if name in taken else name, token_id, taken)
                odd[token_id] = said
            table[token_id] = name
            taken.add(name)
    return TokenTable(table, odd, gap)


def _free(name: str, token_id: int, taken: set[str]) -> str:
    """The name, with the id appended if another token has it."""
    while name in taken:
        name = f"{name}⟨{token_id}⟩"
    return name


def readable(text: bytes) -> str:
    """UTF-8 as text; bytes that belong to no character are written `<0xF0>`."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return _LONE_BYTE.sub(_hex, text.decode("utf-8", "surrogateescape"))


def _spread(parts: list[bytes]) -> list[str]:
    """The text of consecutive parts; each character goes to the part where it begins."""
    found = ["" for _ in parts]
    place, end = 0, len(parts[0])
    at = 0
    for character in b"".join(parts).decode("utf-8", "surrogateescape"):
        while at >= end:
            place += 1
            end += len(parts[place])
        found[place] += _LONE_BYTE.sub(_hex, character)
        at += len(character.encode("utf-8", "surrogateescape"))
    return found


def _hex(byte: re.Match[str]) -> str:
    return f"<0x{ord(byte[0]) - 0xDC00:02X}>"


def _unused(token_id: int) -> str:
    return f"<no token {token_id}>"

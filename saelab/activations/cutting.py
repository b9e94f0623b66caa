r"""Where a long text may be cut without changing its tokens.

A cut lies between a character that is not white space and a single space or line break. It is made
only if both of these show that no token can reach across:

- No entry of the vocabulary, no merge and no added token contains the two characters side by side,
  in any of the forms in which vocabularies write them (` `, `Ġ`, `▁`; `\n`, `Ċ`). BPE joins only
  neighbours whose union is in the vocabulary, and a Unigram model segments a text into entries of
  it; both algorithms then treat each side as if the other were absent.
- The tokens around the cut are the same for both sides together and for each side alone. This
  detects normalizers and pre-tokenizers that change a text's beginning or end. Tokenizers that put
  a space before a text (SentencePiece) get the right side without its space.

Where this cannot be shown, nothing is cut.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from saelab.lm.batches import parts_of
from saelab.lm.protocol import Encoder

AROUND = 96
"""Characters on each side of a cut whose tokens are compared."""
TRIES = 64
"""Number of places tried before the rest of a document stays whole."""
FORMS = {" ": (" ", "Ġ", "▁"), "\n": ("\n", "Ċ", "<0x0A>")}
_PLACE = re.compile(r"(?<=\S)[ \n](?=\S)")
PROBE = "The quick brown fox, it is said, jumps over a lazy dog and runs away.\nThen it rests."


@dataclass(frozen=True)
class Cut:
    """A cut: the left side ends before `left`, the right side starts at `right`, 0 or 1 later."""

    left: int
    right: int


class Cutter:
    """Finds places to cut texts for this tokenizer."""

    def __init__(self, tokenizer: Encoder) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def usable(self) -> bool:
        """Whether this tokenizer allows cuts; if not, texts stay whole."""
        return self._joined is not None and self.first(PROBE, 1) is not None

    @cached_property
    def _joined(self) -> frozenset[tuple[str, str]] | None:
        return _joined(self._tokenizer)

    def first(self, text: str, start: int, tries: int | None = None) -> Cut | None:
        """The first cut from `start` on; None if none is found in `TRIES` places."""
        for match in itertools.islice(_PLACE.finditer(text, start), tries):
            if (cut := self._cut(text, match.start())) is not None:
                return cut
        return None

    def pieces(self, text: str, size: int) -> Iterator[tuple[int, str]]:
        """The text in pieces of about `size` characters, each with its position in the text."""
        start = 0
        while len(text) - start > size + size // 2 and self.usable:
            cut = self.first(text, start + size, TRIES)
            if cut is None or len(text) - cut.right < size // 2:
                break
            yield start, text[start : cut.left]
            start = cut.right
        yield start, text[start:]

    def _cut(self, text: str, at: int) -> Cut | None:
        joined = self._joined
        if joined is None or any(pair in joined for pair in _forms(text[at - 1], text[at])):
            return None
        left, right = text[max(0, at - AROUND) : at], text[at : at + AROUND]
        encode = self._tokenizer.encode
        whole, before = encode(left + right), encode(left)
        # A tokenizer that puts a space before a text restores the one left out here.
        for skipped in range(1 + (text[at] == " ")):
            if before + encode(right[skipped:]) == whole:
                return Cut(at, at + skipped)
        return None


def _forms(first: str, second: str) -> Iterator[tuple[str, str]]:
    """The spellings of two neighbouring characters in a vocabulary."""
    for left in (first, _byte_characters()[first.encode(errors="replace")[-1]]):
        for right in FORMS[second]:
            yield left, right


def _joined(tokenizer: Encoder) -> frozenset[tuple[str, str]] | None:
    """All pairs, of a character and a spelling of space or line break, that some token contains.

    None if the tokenizer does not show its parts.
    """
    parts = parts_of(tokenizer)
    if parts is None:
        return None
    model = parts["model"]
    vocabulary = model.get("vocab", ())
    texts = [entry[0] if isinstance(entry, list) else entry for entry in vocabulary]
    merges = [m if isinstance(m, str) else "".join(m) for m in model.get("merges", ())]
    added = parts.get("added_tokens", ())
    pairs: set[tuple[str, str]] = set()
    marks = [mark for forms in FORMS.values() for mark in forms]
    # A merge in the old format separates its halves by a space, which must not count as a pair.
    merged = (m.replace(" ", "") if m.count(" ") == 1 else m for m in merges)
    for text in (*texts, *merged, *(token["content"] for token in added)):
        for mark in marks:
            at = text.find(mark, 1)
            while at > 0:
                pairs.add((text[at - 1], mark))
                at = text.find(mark, at + 1)
    # Such a token swallows the white space after it.
    pairs |= {(t["content"][-1], m) for t in added if t["rstrip"] for m in marks}
    return frozenset(pairs)


@lru_cache(maxsize=1)
def _byte_characters() -> tuple[str, ...]:
    """The character that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    shown = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(256))
    return tuple(chr(b) if b in shown else chr(256 + next(hidden)) for b in range(256))

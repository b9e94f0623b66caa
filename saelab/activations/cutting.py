r"""Where a long text may be cut without changing its tokens.

A cut is only made between a character that is no white space and a single space or line break, and
only where it is shown that no token could have reached across:

- No entry of the vocabulary, no merge and no added token contains the two characters side by side,
  in any of the forms in which vocabularies write them (` `, `Ġ`, `▁`; `\n`, `Ċ`). BPE joins only
  neighbours whose union is in the vocabulary, and a Unigram model segments a text into entries of
  it; either then treats both sides as if the other were not there.
- The tokens around the cut, of both sides together and of each alone, are the same. That finds what
  a normalizer or a pre-tokenizer does at a text's beginning and end. Tokenizers that put a space
  before a text (SentencePiece) are given the right side without the space that was there.

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
"""Places that are tried before the rest of a document stays whole."""
FORMS = {" ": (" ", "Ġ", "▁"), "\n": ("\n", "Ċ", "<0x0A>")}
_PLACE = re.compile(r"(?<=\S)[ \n](?=\S)")
PROBE = "The quick brown fox, it is said, jumps over a lazy dog and runs away.\nThen it rests."


@dataclass(frozen=True)
class Cut:
    """The left side ends before `left`, the right side starts at `right` (at most one later)."""

    left: int
    right: int


class Cutter:
    """Finds cuts of texts that this tokenizer reads."""

    def __init__(self, tokenizer: Encoder) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def usable(self) -> bool:
        """Whether there are any; if not, texts stay whole."""
        return self._joined is not None and self.first(PROBE, 1) is not None

    @cached_property
    def _joined(self) -> frozenset[tuple[str, str]] | None:
        return _joined(self._tokenizer)

    def first(self, text: str, start: int, tries: int | None = None) -> Cut | None:
        """The first cut from `start` on; None where there is none among so many places."""
        for match in itertools.islice(_PLACE.finditer(text, start), tries):
            if (cut := self._cut(text, match.start())) is not None:
                return cut
        return None

    def pieces(self, text: str, size: int) -> Iterator[tuple[int, str]]:
        """The text in pieces of about `size` characters, each with its place in the text."""
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
        # A tokenizer that puts a space before a text puts back the one that is left out here.
        for skipped in range(1 + (text[at] == " ")):
            if before + encode(right[skipped:]) == whole:
                return Cut(at, at + skipped)
        return None


def _forms(first: str, second: str) -> Iterator[tuple[str, str]]:
    """The pairs by which a vocabulary may write two characters that stand side by side."""
    for left in (first, _byte_characters()[first.encode(errors="replace")[-1]]):
        for right in FORMS[second]:
            yield left, right


def _joined(tokenizer: Encoder) -> frozenset[tuple[str, str]] | None:
    """All pairs of a character and a form of a space or line break that some token contains.

    None where the tokenizer does not show its parts.
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
    # A merge in the old form has its two halves beside a space, which would count as joined.
    merged = (m.replace(" ", "") if m.count(" ") == 1 else m for m in merges)
    for text in (*texts, *merged, *(token["content"] for token in added)):
        for mark in marks:
            at = text.find(mark, 1)
            while at > 0:
                pairs.add((text[at - 1], mark))
                at = text.find(mark, at + 1)
    # Such a token swallows the white space behind it.
    pairs |= {(t["content"][-1], m) for t in added if t["rstrip"] for m in marks}
    return frozenset(pairs)


@lru_cache(maxsize=1)
def _byte_characters() -> tuple[str, ...]:
    """The character by which byte-level vocabularies write each byte (GPT-2's table)."""
    shown = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(256))
    return tuple(chr(b) if b in shown else chr(256 + next(hidden)) for b in range(256))

"""A text as windows of token ids, in a temporary file rather than in memory."""

import hashlib
import mmap
import tempfile
from dataclasses import dataclass
from typing import IO

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from saelab.activations.documents import open_documents
from saelab.lm.protocol import ActivationSource

PADDING = -1
"""Stands behind the end of a short context; never a token, never a row."""


class _Numbers:
    """A file's numbers, which stay readable when it is closed; none of them stays in memory."""

    def __init__(self, file: IO[bytes], dtype: type[np.integer]) -> None:
        file.flush()
        # An empty file cannot be mapped.
        empty = not file.tell()
        self._map = None if empty else mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self._all = np.frombuffer(b"" if self._map is None else self._map, dtype)

    def read(self, at: Int[ndarray, " n"], width: int = 1) -> Int[ndarray, "n width"]:
        """The numbers in rows `at` of so many columns."""
        out = self._all.reshape(-1, width)[at]
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)
        return out

    def __len__(self) -> int:
        return len(self._all)


@dataclass(frozen=True)
class Windows:
    """All windows of a text, in files that are gone when nothing uses them any more.

    Attributes:
        length: tokens of a window.
        digest: sha256 of the tokens as int32.
    """

    length: int
    digest: str
    _tokens: _Numbers
    _documents: _Numbers

    def __len__(self) -> int:
        return len(self._documents)

    def read(self, numbers: Int[ndarray, " n"]) -> tuple[Int[ndarray, "n pos"], Int[ndarray, " n"]]:
        """The tokens of these windows, `PADDING` behind the end of a document; their documents."""
        return self._tokens.read(numbers, self.length), self._documents.read(numbers)[:, 0]


def read_windows(source: str, lm: ActivationSource, length: int, max_tokens: int | None) -> Windows:
    """Tokenise documents one after another and cut each into windows.

    Memory holds one document at a time; the windows take four bytes a token on the disk of the
    system's temporary files (TMPDIR). Reading stops after the document that reaches `max_tokens`.
    """
    bos = lm.info.bos_token_id
    prefix = [] if bos is None else [bos]
    digest, seen = hashlib.sha256(), 0
    with tempfile.TemporaryFile() as tokens, tempfile.TemporaryFile() as documents:
        for number, text in enumerate(open_documents(source)):
            ids = np.asarray(lm.tokenizer.encode(text), dtype=np.int32)
            windows = cut(ids, prefix, length)
            data = windows.tobytes()
            tokens.write(data)
            digest.update(data)
            documents.write(np.full(len(windows), number, dtype=np.int64).tobytes())
            seen += len(ids)
            if max_tokens is not None and seen >= max_tokens:
                break
        numbers = _Numbers(tokens, np.int32), _Numbers(documents, np.int64)
        return Windows(length, digest.hexdigest(), *numbers)


def cut(ids: Int[ndarray, " token"], prefix: list[int], length: int) -> Int[ndarray, "context pos"]:
    """Windows of `length`: `prefix`, then tokens in order; the last is padded."""
    room = length - len(prefix)
    n = -(-len(ids) // room)
    padded = np.full(n * room, PADDING, dtype=np.int32)
    padded[: len(ids)] = ids
    front = np.tile(np.asarray(prefix, dtype=np.int32), (n, 1))
    return np.concatenate([front, padded.reshape(n, room)], axis=1)

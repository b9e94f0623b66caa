"""Documents as windows of token ids: tokenised in batches, cut, and kept without padding."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash
from jaxtyping import Int, Integer, Shaped
from numpy import ndarray

from saelab.activations.annotate import Annotator
from saelab.activations.cutting import Cutter
from saelab.activations.documents import Document
from saelab.activations.format import DamagedStoreError
from saelab.activations.sources import Numbered
from saelab.files import atomic_write
from saelab.lm.batches import encode_batch, encode_with_offsets
from saelab.lm.protocol import Encoder

PADDING = -1
"""Fills contexts after the end of a sequence; never a token, never a row."""
KEPT = "text"
"""The directory in a store that keeps the tokens of its text, held-out ones included."""
PIECE_CHARACTERS = 2**14
"""A longer document is tokenised in pieces, in parallel."""
MAX_SHARD_BYTES, MAX_HEAD_BYTES = 2**33, 2**24


@dataclass(frozen=True)
class Shard:
    """Windows of some documents, one after the other; leading special tokens are not stored.

    Attributes:
        ids: the tokens of all windows.
        length: tokens of each window.
        document: number of each window's document.
        file: index in `files` of each window.
        files: origins of the documents.
        columns: an annotator's columns, with an entry per token.
        share: share of the source read up to this shard; 1 for the last.
    """

    ids: Integer[ndarray, " token"]
    length: Integer[ndarray, " window"]
    document: Integer[ndarray, " window"]
    file: Integer[ndarray, " window"]
    files: tuple[str, ...]
    share: float = 0.0
    columns: Mapping[str, Shaped[ndarray, "token ..."]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.length)

    def up_to_document(self, n_tokens: int) -> "Shard":
        """The windows up to the document that reaches this many tokens, as a last shard."""
        reached = np.cumsum(self.length)
        if not len(self) or reached[-1] < n_tokens:
            return self
        last = self.document[int(np.searchsorted(reached, n_tokens))]
        n = int(np.searchsorted(self.document, last, side="right"))
        tokens = int(reached[n - 1])
        return replace(
            self,
            ids=self.ids[:tokens],
            length=self.length[:n],
            document=self.document[:n],
            file=self.file[:n],
            columns={name: values[:tokens] for name, values in self.columns.items()},
            share=1.0,
        )

    @cached_property
    def _start(self) -> Int[ndarray, " window"]:
        return np.cumsum(self.length, dtype=np.int64) - self.length

    def padded(
        self, windows: Int[ndarray, " n"], room: int, name: str | None = None
    ) -> Shaped[ndarray, "n room ..."]:
        """These windows' tokens, or a column of them, followed by `PADDING` or zeros."""
        values = self.ids if name is None else self.columns[name]
        real = np.arange(room) < self.length[windows][:, None]
        out = np.full(
            (len(windows), room, *values.shape[1:]), PADDING if name is None else 0, values.dtype
        )
        place = self._start[windows][:, None] + np.arange(room)
        out[real] = values[place[real]]
        return out


def tokenise(
    documents: Sequence[Numbered],
    tokenizer: Encoder,
    room: int,
    cutter: Cutter,
    annotator: Annotator | None = None,
) -> Shard:
    """The windows, of at most `room` tokens, of these documents in their order."""
    if annotator is None:
        texts = [each.document.text for each in documents]
        ids, columns = _ids(texts, tokenizer, cutter), {}
    else:
        texts = [annotator.text(each.document) for each in documents]
        documents = [d for d, text in zip(documents, texts, strict=True) if text.strip()]
        texts = [text for text in texts if text.strip()]
        ids, columns = _annotated(
            [each.document for each in documents], texts, tokenizer, annotator
        )
    files = tuple(dict.fromkeys(each.document.origin.source for each in documents))
    index = {name: i for i, name in enumerate(files)}
    sizes = np.array([len(each) for each in ids], dtype=np.int64)
    of, length = cut(sizes, room)
    numbers = np.array([each.number for each in documents], dtype=np.int64)
    sources = np.array([index[each.document.origin.source] for each in documents], dtype=np.int32)
    joined = np.concatenate(ids) if ids else np.empty(0, dtype=np.int32)
    return Shard(
        joined.astype(np.int32, copy=False),
        length,
        numbers[of],
        sources[of],
        files,
        columns=columns,
    )


def cut(
    sizes: Int[ndarray, " document"], room: int
) -> tuple[Int[ndarray, " window"], Int[ndarray, " window"]]:
    """The document and the length of every window; only a document's last may be short."""
    n = -(-sizes // room)
    of = np.repeat(np.arange(len(sizes)), n)
    inside = np.arange(len(of)) - np.repeat(np.cumsum(n) - n, n)
    return of, np.minimum(room, sizes[of] - inside * room)


def _ids(texts: Sequence[str], tokenizer: Encoder, cutter: Cutter) -> list[Integer[ndarray, " _"]]:
    """The tokens of each text; long texts are tokenised in pieces."""
    pieces = [[piece for _, piece in cutter.pieces(text, PIECE_CHARACTERS)] for text in texts]
    found = iter(encode_batch(tokenizer, [piece for parts in pieces for piece in parts]))
    return [
        next(found) if len(parts) == 1 else np.concatenate([next(found) for _ in parts])
        for parts in pieces
    ]


def _annotated(
    documents: Sequence[Document],
    texts: Sequence[str],
    tokenizer: Encoder,
    annotator: Annotator,
) -> tuple[list[Integer[ndarray, " _"]], dict[str, Shaped[ndarray, "token ..."]]]:
    encoded = encode_with_offsets(tokenizer, texts)
    found = [
        annotator.annotate(document, text, offsets)
        for document, text, (_, offsets) in zip(documents, texts, encoded, strict=True)
    ]
    columns = {
        name: np.concatenate([each[name] for each in found]).astype(dtype, copy=False)
        for name, dtype in annotator.columns.items()
        if found
    }
    return [ids for ids, _ in encoded], columns


def write_shard(path: Path, shard: Shard, key: str) -> None:
    """Write a shard whole or not at all: a line of JSON, the arrays, their 128-bit XXH3."""
    arrays = {
        "ids": shard.ids.astype("<i4"),
        "length": shard.length.astype("<i4"),
        "document": shard.document.astype("<i8"),
        "file": shard.file.astype("<i4"),
        **{f"column {name}": values for name, values in shard.columns.items()},
    }
    head = {
        "key": key,
        "share": shard.share,
        "files": shard.files,
        "arrays": {name: [a.dtype.str, list(a.shape)] for name, a in arrays.items()},
    }
    data = json.dumps(head).encode() + b"\n" + b"".join(a.tobytes() for a in arrays.values())
    atomic_write(path, data + xxhash.xxh3_128_digest(data))


def belongs(path: Path, key: str) -> bool:
    """Whether a shard was written there under this key; damage shows when it is read."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            return json.loads(file.readline(MAX_HEAD_BYTES))["key"] == key
        except (ValueError, KeyError, TypeError, RecursionError):
            return False


def read_shard(path: Path, key: str | None) -> Shard:
    """A shard that `write_shard` wrote under this key; with None, under any key.

    Raises:
        DamagedStoreError: the file is damaged, or belongs to another text.
    """
    if path.is_symlink() or path.stat().st_size > MAX_SHARD_BYTES:
        raise DamagedStoreError(f"{path} is no plain file of tokens; delete it.")
    raw = path.read_bytes()
    data = raw[:-16]
    if xxhash.xxh3_128_digest(data) != raw[-16:]:
        raise DamagedStoreError(
            f"{path} was altered; delete it, and it is made from the text again."
        )
    try:
        line, _, rest = data.partition(b"\n")
        head = json.loads(line)
        arrays, at = {}, 0
        for name, (kind, shape) in head["arrays"].items():
            dtype = np.dtype(kind)
            if dtype.hasobject:
                raise ValueError("an array of objects")
            n = int(np.prod(shape, dtype=np.int64))
            arrays[name] = np.frombuffer(rest, dtype, n, at).reshape(shape)
            at += arrays[name].nbytes
        if key is not None and head["key"] != key:
            raise ValueError("it belongs to another text, tokenizer or context length")
        columns = {n[7:]: a for n, a in arrays.items() if n.startswith("column ")}
        known = {name: arrays[name] for name in ("ids", "length", "document", "file")}
        share, files = float(head["share"]), tuple(map(str, head["files"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedStoreError(f"{path} is no file of this text's tokens: {error}.") from None
    return Shard(**known, files=files, share=share, columns=columns)

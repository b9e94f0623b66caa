"""Documents in shards: from files in a random order of blocks, or from a stream.

Files are cut into blocks of a few thousand tokens: consecutive lines, or a stretch of a long text.
The blocks of all files are read in one random order, so every initial part of it is a sample of all
files. A stream keeps its own order.
"""

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import xxhash
from jaxtyping import Int
from numpy import ndarray

from saelab.activations.cutting import Cutter
from saelab.activations.documents import Document, Origin, clean, json_rows, row_document
from saelab.activations.format import JsonObject
from saelab.activations.order import permutation
from saelab.activations.text_files import TextFile, find_files, scan
from saelab.config import UsageError
from saelab.files import temporary_directory

BLOCK_BYTES = 2**14
SHARD_BYTES = (2**16, 2**21)
"""The smallest and the largest size of a shard; a text has 64 shards if these limits allow."""
STREAM_DOCUMENTS = 2**12
STREAM_CHARACTERS = 2**20
HELD = 10
"""Shards of a stream that are held for other threads; earlier ones are read again."""
LOOK_AHEAD = 2**14
"""Bytes after a block that are read at once to find its end."""
ORDER = 0x7E87
"""Separates the order of blocks from other permutations with the same seed."""


@dataclass(frozen=True)
class Numbered:
    """A document, or a stretch of one.

    Attributes:
        number: number of the document in the source's own order.
    """

    number: int
    document: Document


class ShardOfDocuments(NamedTuple):
    """Documents, and the share of the source read so far: 1 at its end.

    Before the end of a stream the share is 0, since it is unknown.
    """

    documents: list[Numbered]
    share: float


@runtime_checkable
class DocumentSource(Protocol):
    """Documents in shards. Reading a shard twice gives the same documents."""

    def shard(self, number: int) -> ShardOfDocuments | None:
        """A shard's documents; None after the last. Several threads may call this at once."""
        ...


class FileSource:
    """The documents of files in a random order of blocks.

    Attributes:
        facts: the facts that decide the documents and their order.

    Raises:
        UsageError: a file is missing, unreadable or not text.
    """

    def __init__(
        self, source: str, text_field: str | None, cutter: Cutter | None, *, seed: int, block: int
    ) -> None:
        self._field, self._cutter, self._block = text_field, cutter, block
        spool = temporary_directory(self, "saelab-text-")
        self._files = [scan(path, spool, block) for path in find_files(source)]
        digest = xxhash.xxh3_128()
        root = Path(source)
        for file in self._files:
            name = Path(file.name).relative_to(root).as_posix() if root.is_dir() else ""
            digest.update(f"{name} {file.size} {file.xxh3}\n".encode(errors="surrogateescape"))
        self.facts: JsonObject = {"text_xxh3": digest.hexdigest(), "order": "mixed", "seed": seed}
        # Numbers of documents: one per line in a file of rows, else one per file.
        sizes = [int(file.newlines.sum()) + 1 if file.rows else 1 for file in self._files]
        self._first = np.cumsum([0, *sizes])
        self._seed = seed
        self._lay_out()

    def _lay_out(self) -> None:
        self._blocks = self._cut()
        self._shards = self._grouped(self._seed)

    def documents(self) -> Iterator[Document]:
        """All documents: first those of files of rows; in the order of names and lines."""
        for rows in (True, False):
            for index, start, stop in self._blocks.tolist():
                if self._files[index].rows == rows:
                    yield from (each.document for each in self._read(index, start, stop))

    def read_as(self, text_field: str | None, cutter: Cutter | None) -> "FileSource":
        """The same source with texts from this field, or with texts that may be cut; not both."""
        self._field, self._cutter = text_field, cutter
        self._lay_out()
        return self

    def shard(self, number: int) -> ShardOfDocuments | None:
        """See `DocumentSource.shard`."""
        if number >= len(self._shards):
            return None
        blocks = self._blocks[self._shards[number]].tolist()
        found = [each for index, start, stop in blocks for each in self._read(index, start, stop)]
        return ShardOfDocuments(found, (number + 1) / len(self._shards))

    def _cut(self) -> Int[ndarray, "block 3"]:
        """File, first and last byte of every block."""
        parts = []
        for index, file in enumerate(self._files):
            whole = not file.rows and (self._cutter is None or not self._cutter.usable)
            step = max(1, file.size - file.start) if whole else self._block
            starts = np.arange(file.start, max(file.size, file.start + 1), step)
            ends = np.minimum(starts + step, file.size)
            parts.append(np.stack([np.full(len(starts), index), starts, ends], axis=1))
        return np.concatenate(parts)

    def _grouped(self, seed: int) -> list[Int[ndarray, " block"]]:
        """The blocks of each shard."""
        order = permutation(len(self._blocks), seed, ORDER)
        read = np.cumsum((self._blocks[:, 2] - self._blocks[:, 1])[order])
        least, most = SHARD_BYTES
        size = min(max(int(read[-1]) // 64, least), most)
        return np.split(order, np.flatnonzero(np.diff((read - 1) // size)) + 1)

    def _read(self, index: int, start: int, stop: int) -> Iterator[Numbered]:
        file, first = self._files[index], int(self._first[index])
        if file.rows:
            lines = file.lines(start, stop, self._block)
            for origin, row in json_rows(lines, file.name):
                assert origin.line is not None
                if document := row_document(row, origin, self._field):
                    yield Numbered(first + origin.line - 1, document)
        elif (text := clean(self._stretch(file, start, stop))).strip():
            yield Numbered(first, Document(text, Origin(file.name)))

    def _stretch(self, file: TextFile, start: int, stop: int) -> str:
        """The text from the first cut after `start` to the first cut after `stop`."""
        begin = start if start == file.start else self._place(file, start)[1]
        end = stop if stop == file.size else self._place(file, stop)[0]
        return file.read(begin, end).decode() if begin < end else ""

    def _place(self, file: TextFile, at: int) -> tuple[int, int]:
        """The first cut from this byte on: where its left side ends and its right side begins."""
        before = max(file.start, at - 512)
        size = LOOK_AHEAD
        while True:
            after = min(file.size, at + size)
            raw = file.read(before, after)
            # Bytes of characters that cross the ends are left out on both sides.
            skipped = next((i for i in range(4) if i < len(raw) and raw[i] & 0xC0 != 0x80), 0)
            text = raw[skipped:].decode(errors="ignore")
            start = len(raw[skipped : at - before].decode(errors="ignore"))
            assert self._cutter is not None
            cut = self._cutter.first(text, max(1, start))
            # A cut near the end may be possible only because the text seems to end there.
            if cut and (after == file.size or cut.right + 256 < len(text)):
                bytes_to = [len(text[:n].encode()) for n in (cut.left, cut.right)]
                return before + skipped + bytes_to[0], before + skipped + bytes_to[1]
            if after == file.size:
                return file.size, file.size
            size *= 8


class StreamSource:
    """Documents in the order of the stream."""

    def __init__(self, stream: Callable[[], Iterator[Document]]) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._documents: Iterator[Document] = iter(())
        self._following: Document | None = None
        self._next: int | None = None
        self._count = 0
        self._held: dict[int, ShardOfDocuments | None] = {}

    def shard(self, number: int) -> ShardOfDocuments | None:
        """See `DocumentSource.shard`; going back restarts the stream."""
        with self._lock:
            if number in self._held:
                return self._held.pop(number)
            if self._next is None or number < self._next:
                self._documents, self._next, self._count = self._stream(), 0, 0
                self._following = next(self._documents, None)
            while self._next < number:
                # Another thread may want these shards; the oldest were served already.
                self._held[self._next] = self._take(self._next)
                self._next += 1
                self._held.pop(self._next - HELD, None)
            self._next += 1
            return self._take(number)

    def _take(self, number: int) -> ShardOfDocuments | None:
        """The next documents; the last shard with documents includes the end of the stream."""
        found: list[Numbered] = []
        size = 0
        while len(found) < STREAM_DOCUMENTS and size < STREAM_CHARACTERS and self._following:
            found.append(Numbered(self._count, self._following))
            self._count, size = self._count + 1, size + len(self._following.text)
            self._following = next(self._documents, None)
        if number and not found:
            return None
        return ShardOfDocuments(found, 0.0 if self._following else 1.0)


def ordered_documents(source: str) -> Iterator[Document]:
    """The documents of files in the order of names and lines, with unchanged bytes.

    Older versions read every text in this order; this finds what they held out.
    """
    for path in find_files(source):
        if path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as file:
                for origin, row in json_rows(enumerate(file, start=1), str(path)):
                    if isinstance(text := row.get("text"), str) and text.strip():
                        yield Document(text, origin)
        elif (text := path.read_text(encoding="utf-8")).strip():
            yield Document(text, Origin(str(path)))


def hub_documents(
    source: str, text_field: str | None, *, as_they_are: bool = False
) -> Iterator[Document]:
    """The rows of `hf:name`, `hf:name:split` or `hf:name:config:split`, streamed.

    With `as_they_are`, line ends are not changed.

    Raises:
        UsageError: the datasets package or the dataset is missing, or a row has no text.
    """
    name, config, split = hub_parts(source)
    try:
        import datasets
    except ImportError:
        raise UsageError(
            "hf: sources need the datasets package: pip install 'saelab[hub]'."
        ) from None
    wanted = (name,) if config is None else (name, config)
    try:
        rows: Any = datasets.load_dataset(*wanted, split=split, streaming=True)
        for number, row in enumerate(rows, start=1):
            if document := row_document(row, Origin(source, number), text_field):
                yield replace(document, text=row[text_field]) if as_they_are else document
    except UsageError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = (
            f"; name a configuration: hf:{name}:CONFIG:{split}"
            if config is None and "config" in reason.lower()
            else ""
        )
        raise UsageError(f"{source} cannot be streamed: {reason.rstrip('.')}{hint}.") from error


def hub_parts(source: str) -> tuple[str, str | None, str]:
    """Name, configuration and split in an `hf:` source; two parts are a name and a split.

    Raises:
        UsageError: the source has no name, or more than three parts.
    """
    # A colon inside brackets belongs to a split: train[:10%].
    parts = re.split(r":(?![^\[]*\])", source)[1:]
    if not parts or not parts[0] or len(parts) > 3:
        raise UsageError(f"{source} is not hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIGURATION:SPLIT.")
    config = parts[1] or None if len(parts) == 3 else None
    split = parts[-1] if len(parts) > 1 else ""
    return parts[0], config, split or "train"

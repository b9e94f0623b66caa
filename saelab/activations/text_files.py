"""Text files as plain UTF-8: checked as a whole, then read in stretches."""

import codecs
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import xxhash
from jaxtyping import Int
from numpy import ndarray

from saelab.activations.documents import ROWS, SUFFIXES
from saelab.config import UsageError

CHUNK = 2**22
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, the longest first: the mark of UTF-16 begins that of UTF-32."""


@dataclass(frozen=True)
class TextFile:
    """A file that was read once from end to end and found to be text.

    Attributes:
        name: the path as it was given, for messages.
        path: path of its UTF-8 bytes; a temporary copy if it is compressed or UTF-16.
        start: offset of the text, after a byte order mark.
        size: offset of its end.
        rows: whether each line is a document.
        newlines: number of newlines in each `block` bytes from `start` on; empty for a single
            document.
        xxh3: 128-bit XXH3 of the bytes, hex.
    """

    name: str
    path: Path
    start: int
    size: int
    rows: bool
    newlines: Int[ndarray, " block"]
    xxh3: str

    def read(self, start: int, stop: int) -> bytes:
        """The bytes of this stretch."""
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def lines(self, start: int, stop: int, block: int) -> Iterator[tuple[int, str]]:
        """The lines that begin in this block, with their numbers, counted from 1."""
        number = 1 + int(self.newlines[: (start - self.start) // block].sum())
        with self.path.open("rb") as file:
            if start > self.start:
                file.seek(start - 1)
                skipped = file.readline()
                number += len(skipped) > 1
                start += len(skipped) - 1
            file.seek(start)
            while start < stop and (line := file.readline()):
                yield number, line.decode()
                number, start = number + 1, start + len(line)


def find_files(source: str) -> list[Path]:
    """The file of that name, or the text files below a directory, sorted by name.

    Raises:
        UsageError: there is no such file.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if kind_of(p) in SUFFIXES and p.is_file())
        if not files:
            raise UsageError(
                f"{path} has no files ending in {', '.join(SUFFIXES)}, with or without .gz."
            )
        return files
    if not path.is_file():
        raise UsageError(f"{source} is neither a file, a directory, 'tiny' nor hf:name.")
    return [path]


def kind_of(path: Path) -> str:
    """The suffix that gives the kind of content, without `.gz`."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def scan(path: Path, spool: Path, block: int) -> TextFile:
    """Read a file from end to end; text that is not plain UTF-8 is copied into `spool`.

    Raises:
        UsageError: it cannot be read or is not text; the message gives the line.
    """
    with _opened(path) as file:
        head = _guarded(path, file, 4)
    encoding = next((name for mark, name in MARKS if head.startswith(mark)), None)
    plain = path
    if encoding or _packed(path):
        plain = spool / f"{len(list(spool.iterdir()))}.txt"
        with _opened(path) as file, plain.open("wb") as out:
            out.writelines(_utf8(path, file, encoding))
    rows = kind_of(path) in (*ROWS, ".json")
    return _checked(path, plain, block if rows else None)


def _opened(path: Path) -> BufferedIOBase:
    return gzip.open(path) if _packed(path) else path.open("rb")


def _packed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _guarded(path: Path, file: BufferedIOBase, n: int) -> bytes:
    try:
        return file.read(n)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from None


def _utf8(path: Path, file: BufferedIOBase, encoding: str | None) -> Iterator[bytes]:
    """The content as UTF-8; unchanged if no encoding is given."""
    decoder = codecs.getincrementaldecoder(encoding)() if encoding else None
    lines = 1
    while True:
        chunk = _guarded(path, file, CHUNK)
        if decoder is None:
            yield chunk
        else:
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{path}, from line {lines} on: begins with the mark of {encoding} and is not "
                    f"({error.reason}); save it as UTF-8."
                ) from None
            lines += text.count("\n")
            # The decoder refuses half of a surrogate pair, so this cannot fail.
            yield text.encode()
        if not chunk:
            return


def _checked(path: Path, plain: Path, block: int | None) -> TextFile:
    """Hash, decode and count lines in one pass."""
    digest, decoder = xxhash.xxh3_128(), codecs.getincrementaldecoder("utf-8")()
    start, size, lines = 0, 0, 1
    counts: list[Int[ndarray, " block"]] = []
    with plain.open("rb") as file:
        # A multiple of the block size, so that a chunk ends where a block does.
        step = CHUNK if block is None else -(-CHUNK // block) * block
        if file.read(3) == codecs.BOM_UTF8:
            start = size = 3
        file.seek(start)
        while chunk := file.read(step):
            _check_text(path, decoder, chunk, lines)
            lines += chunk.count(b"\n")
            digest.update(chunk)
            size += len(chunk)
            if block is not None:
                at = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) // block
                counts.append(np.bincount(at, minlength=-(-len(chunk) // block)))
        _check_text(path, decoder, b"", lines, final=True)
    newlines = np.concatenate(counts) if counts else np.empty(0, dtype=np.int64)
    return TextFile(str(path), plain, start, size, block is not None, newlines, digest.hexdigest())


def _check_text(
    path: Path, decoder: codecs.IncrementalDecoder, chunk: bytes, lines: int, *, final: bool = False
) -> None:
    """Refuse bytes that are not UTF-8, and NUL, which text never contains."""
    # The decoder's pending bytes of a character are before this chunk, on the same line.
    at = chunk.find(b"\0")
    problem = "holds a NUL byte, so it is no text, or UTF-16 without a byte order mark"
    try:
        decoder.decode(chunk, final=final)
    except UnicodeDecodeError as error:
        wrong = max(0, error.start - (len(error.object) - len(chunk)))
        if not 0 <= at < wrong:
            byte, at = error.object[error.start], wrong
            problem = f"byte 0x{byte:02x} is not UTF-8 ({error.reason}); save the file as UTF-8"
    if at >= 0:
        lines += chunk.count(b"\n", 0, at)
        raise UsageError(f"{path}, line {lines}: {problem}.")

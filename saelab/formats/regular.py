"""Opening a file that may be of any kind."""

import os
import stat
from io import FileIO
from pathlib import Path

from saelab.config import UsageError

_CHUNK = 2**24


class MissingFileError(UsageError):
    """The file does not exist."""


def open_regular(path: Path) -> tuple[FileIO, int]:
    """The regular file at `path`, opened for reading without buffer, and its size in bytes.

    Raises:
        MissingFileError: the file does not exist.
        UsageError: it cannot be opened, or is a pipe, a device or a directory; those may never end.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be opened: {error.strerror}.") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UsageError(f"{path} is not a regular file.")
    return FileIO(descriptor, "rb"), status.st_size


def regular_size(path: Path) -> int:
    """Bytes of the regular file at `path`; raises as `open_regular`."""
    file, size = open_regular(path)
    file.close()
    return size


def read_regular(path: Path, *, most: int) -> bytes:
    """The bytes of the regular file at `path`.

    Raises:
        UsageError: as for `open_regular`, or the file has more than `most` bytes.
    """
    file, size = open_regular(path)
    with file:
        if size > most:
            raise UsageError(f"{path} has {size:,} bytes; a file of its kind has at most {most:,}.")
        try:
            # The file may have grown since.
            parts = []
            while most > 0 and (part := file.read(min(most, _CHUNK))):
                parts.append(part)
                most -= len(part)
            return b"".join(parts)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}.") from None


def utf8(raw: bytes, where: Path | str) -> str:
    """The text of these bytes without its byte order mark; `where` names them in messages.

    Raises:
        UsageError: they are not UTF-8; the message gives the byte, and of several lines its line.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        at = f", line {line}" if b"\n" in raw.rstrip(b"\n") else ""
        raise UsageError(
            f"{where}{at}: byte 0x{raw[error.start]:02x} is not UTF-8; save it as UTF-8."
        ) from None

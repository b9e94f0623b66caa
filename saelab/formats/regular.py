"""Opening a file that may be anything."""

import os
import stat
from io import FileIO
from pathlib import Path

from saelab.config import UsageError

_CHUNK = 2**24


class MissingFileError(UsageError):
    """There is no file of that name."""


def open_regular(path: Path) -> tuple[FileIO, int]:
    """The regular file at `path` opened for reading, unbuffered, and how many bytes it has.

    Raises:
        MissingFileError: there is none.
        UsageError: it is a pipe, a device or a directory, which may never end, or cannot be opened.
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
        UsageError: as for `open_regular`, or it has more than `most` bytes.
    """
    file, size = open_regular(path)
    with file:
        if size > most:
            raise UsageError(f"{path} has {size} bytes; a file of its kind has at most {most}.")
        try:
            # It may have grown since.
            parts = []
            while most > 0 and (part := file.read(min(most, _CHUNK))):
                parts.append(part)
                most -= len(part)
            return b"".join(parts)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}.") from None

"""Files that are either whole or absent: written under a temporary name, fsynced, renamed."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
import uuid
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def atomic_write(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path`; a reader, or a killed process, never sees a part of it."""
    replace_file(path, lambda file: file.write(data))


def atomic_write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write `value` as indented JSON; NaN and infinity are refused, since JSON has neither."""
    atomic_write(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a temporary file beside `path`, make it durable, and give it its name."""
    _write_then(path, write, lambda temporary: temporary.replace(path))


def create_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all; a file that another process made first stays."""

    def give_name(temporary: Path) -> None:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)

    _write_then(path, lambda file: file.write(data), give_name)


def temporary_directory(owner: object, prefix: str) -> Path:
    """A new directory of the system's temporary files (TMPDIR) that goes when `owner` does."""
    path = Path(tempfile.mkdtemp(prefix=prefix))
    weakref.finalize(owner, shutil.rmtree, path, ignore_errors=True)
    return path


def _write_then(
    path: Path, write: Callable[[IO[bytes]], object], give_name: Callable[[Path], object]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        give_name(temporary)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)


def temporary_name(path: Path) -> Path:
    """A name beside `path` that says which process on which host is writing it."""
    return path.with_name(
        f".{path.name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
    )


def fsync_directory(directory: Path) -> None:
    """Make renames inside `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Make a directory, and those above it; each survives a power cut."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        fsync_directory(directory.parent)


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

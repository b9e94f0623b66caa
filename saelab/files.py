"""Files that are whole or absent: written under a temporary name, fsynced, renamed.

Also checks of a place to write to, before any work, and messages about disks, after it.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from saelab.config import UsageError

LONGEST_NAME = 255
"""Most bytes of a file's name, on every usual file system."""
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""The errors of `os.link` on a file system without hard links."""
_TEMPORARY = re.compile(r"\..+\.(\d+)\.[0-9a-f]{8}\.tmp")
_HDF5 = re.compile(r"errno = (\d+)")
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit (ulimit -f), or choose another disk",
    errno.EMFILE: "raise the limit (ulimit -n)",
    errno.EROFS: "choose another place",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EIO: "check the disk",
}


def atomic_write(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path`; neither a reader nor a kill ever sees a part of it."""
    replace_file(path, lambda file: file.write(data))


def atomic_write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write `value` as indented JSON; NaN and infinity are refused, since JSON has neither."""
    atomic_write(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """The bytes that `atomic_write_json` writes."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a temporary file beside `path`, make it durable, and rename it."""
    _write_then(path, write, lambda temporary: temporary.replace(path))


def create_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all; an existing file of another process stays."""

    def give_name(temporary: Path) -> None:
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            if not path.exists():
                temporary.replace(path)

    _write_then(path, lambda file: file.write(data), give_name)


def temporary_directory(owner: object, prefix: str) -> Path:
    """A new directory for temporary files (TMPDIR) that is removed together with `owner`."""
    path = Path(tempfile.mkdtemp(prefix=prefix))
    weakref.finalize(owner, shutil.rmtree, path, ignore_errors=True)
    return path


def _write_then(
    path: Path, write: Callable[[IO[bytes]], object], give_name: Callable[[Path], object]
) -> None:
    temporary = temporary_name(path)
    with telling(path):
        make_directory(path.parent)
        try:
            with temporary.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            give_name(temporary)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_directory(path.parent)


def name_first(draft: Path, path: Path) -> bool:
    """Give a file a second name, whole or not at all; False if the name is taken."""
    try:
        os.link(draft, path)
    except FileExistsError:
        # NFS may lose its answer and repeat the request; two names mean that the first one worked.
        return draft.stat().st_nlink > 1
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        try:
            with path.open("x") as file:
                file.write(draft.read_text())
        except FileExistsError:
            return False
    return True


@contextlib.contextmanager
def telling(path: Path) -> Iterator[None]:
    """Let an OSError without a file name have this one: a full disk does not say which file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def temporary_name(path: Path) -> Path:
    """A name beside `path` that identifies the writing process and host."""
    end = f".{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
    start = os.fsencode(f".{path.name}")[: LONGEST_NAME - len(os.fsencode(end))]
    return path.with_name(os.fsdecode(start) + end)


def is_temporary(path: Path) -> bool:
    """Whether this is the name of an unfinished file."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def temporary_pid(path: Path) -> int | None:
    """The pid in a name that `temporary_name` made; None for another name."""
    match = _TEMPORARY.fullmatch(path.name)
    return None if match is None else int(match[1])


def is_temporary_of(path: Path, host: str, pid: int) -> bool:
    """Whether this process made the name by `temporary_name`."""
    return temporary_pid(path) == pid and f".{host}.{pid}." in path.name


def failure(error: OSError) -> str:
    """The system's error, its file, and a remedy, without a full stop."""
    number = error.errno
    if number is None and (found := _HDF5.search(str(error))):
        number = int(found[1])
    if number is None:
        lines = str(error).strip().splitlines()
        return lines[0].rstrip(".") if lines else type(error).__name__
    said = (error.strerror if error.errno is not None else None) or os.strerror(number)
    where = f"{_short(error.filename)}: " if error.filename else ""
    remedy = _REMEDIES.get(number)
    return f"{where}{said}" + (f"; {remedy}" if remedy else "")


def check_directory(path: Path, option: str = "") -> None:
    """Refuse what is no directory and cannot become one; `option` says where the name came from.

    Raises:
        UsageError: it is a file, a device, below a file, too long, or a link to itself or to
            nothing, or this user may not create it.
    """
    given = f"{option} " if option else ""
    mode = _mode(path, given)
    if mode is not None and not stat.S_ISDIR(mode):
        raise UsageError(f"{given}{path} is {_kind(mode)}; name a directory.")
    if mode is None and path.is_symlink():
        raise UsageError(f"{given}{path} is a link to {path.readlink()}, which is missing.")
    if mode is None:
        _check_parent(path, given)


def check_file(path: Path, option: str) -> None:
    """Refuse a name under which no file can be written; raises as `check_directory`."""
    mode = _mode(path, f"{option} ")
    if mode is not None and not stat.S_ISREG(mode):
        raise UsageError(f"{option} {path} is {_kind(mode)}; name a file.")
    _check_parent(path, f"{option} ")


def check_writable(path: Path, option: str) -> None:
    """`check_directory`, and if the directory exists, this user must be able to write to it."""
    check_directory(path, option)
    if path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path} cannot be written to; {_REMEDIES[errno.EACCES]}.")


def check_only(directory: Path, ours: Callable[[str], bool]) -> None:
    """Refuse a directory with other files than those of the same work, begun before.

    Args:
        directory: it need not exist.
        ours: whether a file, by its path in the directory, is one that will be written again.

    Raises:
        UsageError: it holds something else.
    """
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if not path.is_dir() and not is_temporary(path) and not ours(name):
            raise UsageError(f"{directory} holds {name}; name a new directory.")


def _mode(path: Path, given: str) -> int | None:
    """The kind of file at `path`, links followed; None if there is nothing."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        why = _why(path, error)
        raise UsageError(f"{given}{_short(path)} is no place to write to: {why}.") from None


def _check_parent(path: Path, given: str) -> None:
    """Whether `path`, which does not exist, can be created."""
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise UsageError(f"{given}{path} cannot be made: {above} is no directory.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"{given}{path} cannot be made: {above} cannot be written to.")


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a directory",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "no file")


def _why(path: Path, error: OSError) -> str:
    if error.errno == errno.ENOTDIR:
        above = next(parent for parent in path.parents if parent.exists())
        return f"{above} is no directory"
    if error.errno == errno.ENAMETOOLONG:
        return f"a name may have {LONGEST_NAME} bytes, and a whole path 4095"
    if error.errno == errno.ELOOP:
        return "links on the way lead in a circle"
    return failure(OSError(error.errno, error.strerror))


def _short(path: object) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-40:]}"


def fsync_directory(directory: Path) -> None:
    """Make renames inside `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Make a directory and its parents; each survives a power cut."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        fsync_directory(directory.parent)


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

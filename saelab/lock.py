"""One writer per directory, or one launch of several: a lock file names each writing process.

A lock is a JSON object: `host`, `pid`, `started` (of the process, in clock ticks since boot),
`machine` (boot and PID namespace), `heartbeat` (seconds between two touches of the file), `token`
(tells two locks of one process apart), and what several processes of one launch have in common.
Locks of older versions lack `machine`, `heartbeat` and `token`.
"""

import contextlib
import json
import os
import shutil
import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from saelab.config import UsageError
from saelab.console import duration, note
from saelab.files import (
    check_directory,
    failure,
    is_temporary,
    is_temporary_of,
    make_directory,
    name_first,
    temporary_name,
    temporary_pid,
)
from saelab.owner import (
    Owner,
    exists,
    host,
    named,
    parsed,
    read_owner,
    read_text,
    runs,
    this_process,
)

RUN_LOCK = "writer.lock"
HEARTBEAT = 30.0
"""Seconds between two touches of a lock by its owner."""
STALE = 600.0
"""Seconds after which an untouched lock of another host has lost its owner. Both times are the file
system's, so the clocks of the two hosts need not agree."""

_held: "weakref.WeakValueDictionary[Path, Lock]" = weakref.WeakValueDictionary()
_mutex = threading.RLock()
_beating: threading.Thread | None = None


class Lock:
    """The lock at `path` on the directory `root`, held until `release` or the end of the process.

    The lock of a dead owner is taken over, with a note: on this host at once, on another host when
    it was not touched for `STALE` seconds. If `root` had to be created and is empty at the release,
    it is removed. A fork of the process does not hold the lock.

    Args:
        beside: a pattern of names of the directory's other locks; those with the same `launch` do
            not conflict.
        launch: identifies the launch that several processes belong to.

    Raises:
        UsageError: another process writes the directory (the message has its pid and host), or the
            directory is not writable.
    """

    def __init__(self, path: Path, root: Path, *, beside: str = "", **launch: int | str) -> None:
        self.path = _real(path)
        self.root = root
        self.thread = threading.get_ident()
        self._launch = launch
        beat: Owner = {"heartbeat": HEARTBEAT, "token": uuid.uuid4().hex}
        self._text = json.dumps({**this_process(), **beat, **launch})
        made = [place for place in (root, *root.parents) if not place.exists()]
        self._release = weakref.finalize(self, _remove, self.path, self._text, os.getpid(), made)
        try:
            with _mutex:
                self._take(beside)
                _held[self.path] = self
                _beat_from_now_on()
        except BaseException as error:
            self.release()
            if isinstance(error, OSError):
                raise UsageError(f"{root} cannot be written to: {failure(error)}") from error
            raise

    def release(self) -> None:
        """Release the lock."""
        self._release()
        _held.pop(self.path, None)

    def check(self) -> None:
        """Check that the directory still exists and still belongs to this process.

        Raises:
            OSError: it was removed, or another host took over the lock while this process was
                suspended.
        """
        found = read_text(self.path)
        if found == self._text:
            return
        if found is None:
            raise OSError(f"{self.root} was removed, or its {self.path.name}, while it was written")
        raise OSError(f"{self.root} was taken over by {named(parsed(found))} in the meantime")

    def touch(self) -> None:
        """Show that the owner is alive."""
        with contextlib.suppress(OSError):
            if read_text(self.path) == self._text:
                # Without a time: the file system's own clock.
                os.utime(self.path)

    def _take(self, beside: str) -> None:
        while (now := _create(self.path, self._text)) is not None:
            self._remove_if_stale(self.path, now)
        for path in self.path.parent.glob(beside) if beside else ():
            owner = read_owner(path)
            if path != self.path and any(owner.get(k) != v for k, v in self._launch.items()):
                self._remove_if_stale(path, self.path.stat().st_mtime)

    def _remove_if_stale(self, path: Path, now: float) -> None:
        try:
            seen, age = read_text(path), now - path.stat().st_mtime
            if seen is None:
                return
            owner = parsed(seen)
            if (why := _why_stale(path, owner, age)) is None:
                raise UsageError(_refusal(self.root, path, owner))
            aside = temporary_name(path)
            path.rename(aside)
        except FileNotFoundError:
            return
        if read_text(aside) != seen:
            # Another process took over the stale lock meanwhile: this is its lock, so put it back.
            name_first(aside, path)
        elif why:
            note(f"{self.root} is taken over from {named(owner)}, {why}.")
        aside.unlink()


@contextmanager
def writing(run: Path) -> Iterator[Lock]:
    """Hold the lock of a directory, and remove unfinished files of dead writers.

    The thread that already holds it may enter again.

    Raises:
        UsageError: another process or thread writes the directory, or it is not writable.
    """
    path = run / RUN_LOCK
    outer = _held.get(_real(path))
    if outer is not None and outer.thread == threading.get_ident():
        yield outer
        return
    check_directory(run)
    lock = Lock(path, run)
    try:
        _remove_leftovers(run, lock)
        yield lock
    finally:
        lock.release()


def check_held(run: Path) -> None:
    """`Lock.check` of this process's lock on a run directory, if it holds one."""
    if (lock := _held.get(_real(run / RUN_LOCK))) is not None:
        lock.check()


def entries(run: Path) -> list[Path]:
    """A directory's entries without its lock and unfinished files; empty if it does not exist."""
    try:
        found = list(run.iterdir())
    except FileNotFoundError:
        return []
    return [path for path in found if path.name != RUN_LOCK and not is_temporary(path)]


def other_writers(locks: Iterable[Path]) -> set[tuple[str, int]]:
    """Host and pid of every other process that may hold one of these locks."""
    owners = [owner for path in locks if (owner := read_owner(path))]
    alive = {(str(o["host"]), int(o["pid"] or 0)) for o in owners if runs(o) is not False}
    return alive - {(host(), os.getpid())}


def _remove_leftovers(run: Path, lock: Lock) -> None:
    """Remove unfinished files of dead writers, and those that were not written to for long.

    The browser writes to a run without a lock, so files of possibly living processes stay.
    """
    depths = ("", "*/", "*/*/") if (run / "config.json").is_file() else ("",)
    now = lock.path.stat().st_mtime
    for depth in depths:
        remove_unfinished(run, f"{depth}.*.tmp", now)


def remove_unfinished(directory: Path, pattern: str, now: float = 0.0) -> None:
    """Remove unfinished files with these names whose writer has died.

    Also those that nobody has written to for `STALE` seconds before `now`, by the file system.
    """
    for path in directory.glob(pattern):
        with contextlib.suppress(OSError):
            if (pid := temporary_pid(path)) is None:
                continue
            dead = is_temporary_of(path, host(), pid) and not exists(pid)
            if dead or now - path.lstat().st_mtime > STALE:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _create(path: Path, text: str) -> float | None:
    """Make the lock; if there is one already, return the time by the file system's clock."""
    draft = temporary_name(path)
    try:
        with contextlib.suppress(FileNotFoundError):  # Another's release has removed the directory.
            make_directory(path.parent)
            # Linked into place, so that a lock is never seen without its owner in it.
            draft.write_text(text)
            now = draft.stat().st_mtime
            return None if name_first(draft, path) else now
    finally:
        draft.unlink(missing_ok=True)
    return _create(path, text)


def _remove(path: Path, text: str, pid: int, made: list[Path]) -> None:
    """Remove the lock, if it is still this process's, and the empty directories made for it."""
    if os.getpid() != pid:
        return
    # If it cannot be removed, the next writer takes it over after this process has ended.
    with contextlib.suppress(OSError):
        if read_text(path) == text:
            path.unlink()
        for directory in made:
            directory.rmdir()


def _beat_from_now_on() -> None:
    global _beating  # noqa: PLW0603 - one thread touches all locks of the process
    if _beating is None:
        _beating = threading.Thread(target=_beat, name="saelab-locks", daemon=True)
        _beating.start()


def _beat() -> None:
    global _beating  # noqa: PLW0603
    pause = threading.Event()
    while True:
        pause.wait(HEARTBEAT)
        with _mutex:
            locks = list(_held.values())
            if not locks:
                _beating = None
                return
        for lock in locks:
            lock.touch()
        del locks


def _after_fork() -> None:
    """A child process holds no lock, and has no thread that touches one."""
    global _held, _mutex, _beating
    _held, _mutex, _beating = weakref.WeakValueDictionary(), threading.RLock(), None


os.register_at_fork(after_in_child=_after_fork)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path.parent)) / path.name


def _refusal(root: Path, path: Path, owner: Owner) -> str:
    return (
        f"{root} is being written by {named(owner)}; wait for it, or remove {path} if that "
        "process is gone."
    )


def _why_stale(path: Path, owner: Owner, age: float) -> str | None:
    """Why a lock is stale, as text; None if its owner may be alive, empty for this very process."""
    alive = runs(owner)
    if alive is False:
        return "which has died"
    if alive and owner["pid"] == os.getpid():
        # A notebook's cell that was interrupted before it could release the lock.
        return None if path in _held else ""
    if alive is None and age > STALE and (not owner or "heartbeat" in owner):
        return f"which has not touched its lock for {duration(age)}"
    return None

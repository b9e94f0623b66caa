"""The process named by a lock: its identity, and whether it still runs."""

import json
import os
import socket
import stat
from functools import cache
from pathlib import Path

Owner = dict[str, str | int | float | None]
LONGEST = 2**16
"""Bytes of a lock that are read; none is longer."""


def this_process() -> Owner:
    """The facts about this process in a lock.

    `started` is in clock ticks since boot. `machine` identifies the boot and the PID namespace,
    which processes that see each other's pids share: hosts may have the same name, and containers
    often have the same pids. Both are None if there is no /proc.
    """
    pid = os.getpid()
    machine = _machine()
    return {"host": host(), "pid": pid, "started": start_time(pid), "machine": machine}


def host() -> str:
    """This host's name."""
    return socket.gethostname()


def read_text(path: Path) -> str | None:
    """The text of a lock, up to its limit; None if there is none.

    Anything but a regular file, such as a pipe on which a reader would wait, counts as empty.
    """
    try:
        with open(path, "rb", opener=_at_once) as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            return file.read(LONGEST).decode(errors="replace") if regular else ""
    except (FileNotFoundError, NotADirectoryError):
        return None


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_owner(path: Path) -> Owner:
    """The owner named by a lock; empty if there is no lock, or it names none."""
    return parsed(read_text(path) or "")


def parsed(lock: str) -> Owner:
    """The owner named by a lock's text."""
    try:
        owner = json.loads(lock)
    except (ValueError, RecursionError):
        return {}
    whole = isinstance(owner, dict) and {"host", "pid", "started"} <= owner.keys()
    return owner if whole and isinstance(owner["pid"], int) else {}


def named(owner: Owner) -> str:
    """The owner's name in a sentence."""
    return f"process {owner['pid']} on {owner['host']}" if owner else "an unknown process"


def runs(owner: Owner) -> bool | None:
    """Whether the owner is running; None if this cannot be seen from here."""
    here = owner.get("host") == host()
    if not here or owner.get("machine", _machine()) != _machine():
        return None
    pid = owner["pid"]
    assert isinstance(pid, int)
    if not exists(pid):
        return False
    # The pid may have been given to another process since.
    found = start_time(pid)
    return None if found is None and _machine() is not None else owner["started"] == found


def exists(pid: int) -> bool:
    """Whether a process of this host has the pid; an ended process does not count."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return not _ended(pid)


def start_time(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None if /proc does not say."""
    fields = _fields(pid)
    return fields[19] if fields else None


def _ended(pid: int) -> bool:
    """Whether an ended process is only listed until its parent asks for its exit status."""
    return _fields(pid)[:1] in (["Z"], ["X"])


def _fields(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


@cache
def _machine() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None

"""One writer a store: `state/writer.lock` says which process it is."""

import json
import os
import socket
import uuid
from pathlib import Path

from saelab.config import UsageError

LOCK = "writer.lock"


class WriterLock:
    """The lock of the store at `root`, held from creation to `release`.

    A lock whose process has died on this host is taken over; nobody has to remove it.

    Raises:
        UsageError: another process holds it; the message has its pid and host.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / "state" / LOCK
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._owner = _this_process()
        while not self._create():
            self._remove_if_stale()

    def release(self) -> None:
        """Let the next writer in."""
        self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        # Linked into place, so that nobody ever reads a lock without its owner in it.
        draft = self.path.with_name(f".{LOCK}.{uuid.uuid4().hex}.tmp")
        draft.write_text(json.dumps(self._owner))
        try:
            os.link(draft, self.path)
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        return True

    def _remove_if_stale(self) -> None:
        aside = self.path.with_name(f".{LOCK}.{uuid.uuid4().hex}.tmp")
        try:
            seen = self.path.read_text()
            if _is_alive(seen):
                raise UsageError(self._refusal(seen))
            self.path.rename(aside)
        except FileNotFoundError:
            return
        if aside.read_text() != seen:
            # Another process took the stale lock over in between: this one is its, put it back.
            os.link(aside, self.path)
        aside.unlink()

    def _refusal(self, seen: str) -> str:
        try:
            owner = json.loads(seen)
            who = f"process {owner['pid']} on {owner['host']}"
        except (ValueError, KeyError, TypeError):
            who = "an unknown process"
        return (
            f"{self.path.parent.parent} is being written by {who}; wait for it, or remove "
            f"{self.path} if that process is gone."
        )


def _this_process() -> dict[str, str | int | None]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": _start_time(pid)}


def _is_alive(lock: str) -> bool:
    """Whether a lock's owner may be running; yes if it is on another host or cannot be told."""
    try:
        owner = json.loads(lock)
        host, pid, started = owner["host"], int(owner["pid"]), owner["started"]
    except (ValueError, KeyError, TypeError):
        return True
    if host != socket.gethostname():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # The pid may have been given to another process since.
    return started == _start_time(pid)


def _start_time(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[19]

"""One writer a store, or one launch of several: a lock file names each process that writes."""

import json
import os
import re
import socket
import uuid
from pathlib import Path

from saelab.activations.ranks import Ranks
from saelab.config import UsageError

LOCKS = "writer-*.lock"
Owner = dict[str, str | int | None]


class WriterLock:
    """The lock of one process of a launch on the store at `root`, held until `release`.

    Processes of the same launch hold one each, `state/writer-<rank>.lock`; they write different
    units. A lock whose process has died on this host is removed; nobody has to do it by hand.

    Raises:
        UsageError: a process of another launch writes the store; the message has its pid and host.
    """

    def __init__(self, root: Path, ranks: Ranks) -> None:
        self.path = root / "state" / LOCKS.replace("*", str(ranks.rank))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._owner: Owner = {**_this_process(), "world": ranks.world, "launch": ranks.launch}
        while not self._create():
            self._remove_if_stale(self.path)
        try:
            self._refuse_other_launches()
        except UsageError:
            self.release()
            raise

    def release(self) -> None:
        """Let the next writer in."""
        self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        # Linked into place, so that nobody ever reads a lock without its owner in it.
        draft = _draft(self.path)
        draft.write_text(json.dumps(self._owner))
        try:
            os.link(draft, self.path)
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        return True

    def _refuse_other_launches(self) -> None:
        launch = (self._owner["world"], self._owner["launch"])
        for path in self.path.parent.glob(LOCKS):
            owner = _read(path)
            if path != self.path and (owner.get("world"), owner.get("launch")) != launch:
                self._remove_if_stale(path)

    def _remove_if_stale(self, path: Path) -> None:
        aside = _draft(path)
        try:
            seen = path.read_text()
            if _is_alive(_parsed(seen)):
                raise UsageError(_refusal(path, _parsed(seen)))
            path.rename(aside)
        except FileNotFoundError:
            return
        if aside.read_text() != seen:
            # Another process took the stale lock over in between: this one is its, put it back.
            os.link(aside, path)
        aside.unlink()


def other_writers(root: Path) -> set[tuple[str, int]]:
    """Host and pid of every other process that may be writing the store."""
    owners = [_read(path) for path in (root / "state").glob(LOCKS)]
    alive = {(str(o.get("host")), int(o.get("pid") or 0)) for o in owners if _is_alive(o)}
    return alive - {(socket.gethostname(), os.getpid())}


def temporary_owner(path: Path) -> tuple[str, int] | None:
    """Host and pid in a name that `saelab.files.temporary_name` made; None for another name."""
    match = re.fullmatch(r"\.(?:\d+\.h5|manifest\.json)\.(.+)\.(\d+)\.[0-9a-f]+\.tmp", path.name)
    return None if match is None else (match[1], int(match[2]))


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def _read(path: Path) -> Owner:
    try:
        return _parsed(path.read_text())
    except FileNotFoundError:
        return {}


def _parsed(lock: str) -> Owner:
    """A lock's owner; empty if the file says something else."""
    try:
        owner = json.loads(lock)
    except ValueError:
        return {}
    whole = isinstance(owner, dict) and {"host", "pid", "started"} <= owner.keys()
    return owner if whole and isinstance(owner["pid"], int) else {}


def _refusal(path: Path, owner: Owner) -> str:
    who = f"process {owner['pid']} on {owner['host']}" if owner else "an unknown process"
    return (
        f"{path.parent.parent} is being written by {who}; wait for it, or remove {path} if that "
        "process is gone."
    )


def _this_process() -> Owner:
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": _start_time(pid)}


def _is_alive(owner: Owner) -> bool:
    """Whether a lock's owner may be running; yes if it is on another host or cannot be told."""
    if not owner or owner["host"] != socket.gethostname():
        return True
    pid = owner["pid"]
    assert isinstance(pid, int)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # The pid may have been given to another process since.
    return owner["started"] == _start_time(pid)


def _start_time(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[19]

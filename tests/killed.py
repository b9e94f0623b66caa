"""A command killed at a chosen system call, the same one again, and what it leaves.

whole = run_killed(["train", ..., "--out", "run"], None, cwd=a)
for n in spread(len(whole.calls), 40):
    assert run_killed(["train", ..., "--out", "run"], n, cwd=b).killed
    ...
"""

import errno
import os
import re
import shutil
import signal
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from activations.forked import empty_file, processes
from typing_extensions import override

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.mkdir"}
CHANGES |= {"os.truncate", "sqlite3.connect"}
"""What Python audits before it does it; os.rename stands for os.replace too, `open` for all opens,
and sqlite3.connect for a file that C opens."""
VARIABLES = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
TIMES = {"created", "tokens_per_second", "seconds", "at", "memory"}


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: its exit status; negative: the signal.
        out: what it printed on standard output.
        err: and on standard error.
        calls: what it did to files below its directory, in order, as "fsync run/config.json".
    """

    code: int
    out: str
    err: str
    calls: list[str]

    @property
    def killed(self) -> bool:
        """Whether the chosen call was reached."""
        return self.code == -signal.SIGKILL


def run_killed(
    argv: list[str],
    n: int | None,
    cwd: Path,
    environment: dict[str, str] | None = None,
    *,
    full: bool = False,
) -> Outcome:
    """`saelab ARGV` in `cwd`, killed (SIGKILL) before call `n`, from 0; None: never.

    Calls are those that change files below `cwd`: opening for writing, fsync, rename, link, mkdir,
    remove. So a kill before the next call is one after the call before it. If `full`, it is not
    killed: from that call on the disk is full.
    """
    streams = [empty_file() for _ in ("out", "err", "calls")]
    given = (argv, n, cwd.resolve(), streams, VARIABLES | (environment or {}), full)
    process = processes().Process(target=_main, args=given)
    process.start()
    process.join()
    out, err, calls = (path.read_text() for path in streams)
    for path in streams:
        path.unlink()
    assert process.exitcode is not None
    return Outcome(process.exitcode, out, err, calls.splitlines())


def spread(total: int, count: int) -> list[int]:
    """At most `count` of the calls 0 ... total - 1, at even distances, both ends among them."""
    count = min(total, count)
    return sorted({round(i * (total - 1) / max(1, count - 1)) for i in range(count)})


def contents(root: Path) -> dict[str, bytes]:
    """Every file at or below `root` by its path; times are left out of JSON and its lines.

    HDF5 files are compared as bytes too: nothing of ours writes a time into one.
    """
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.suffix in {".json", ".jsonl"}:
                data = _without_times(data.decode())
            found[str(path.relative_to(root))] = data
        elif not any(path.iterdir()):
            found[f"{path.relative_to(root)}/"] = b""
    return found


def differing(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """The files that one has and the other has not, or has otherwise."""
    return [n for n in sorted({*found, *expected}) if found.get(n) != expected.get(n)]


def check_kills(argv: list[str], where: list[int], start: Path, whole: Path, scratch: Path) -> None:
    """Killed at each of these calls, the same command again leaves what `whole` holds, to the byte.

    Args:
        start: the directory as it is before the command; copied for each kill.
        whole: where the command has run through; the same layout as `start`.
        scratch: an empty directory.
    """
    expected = contents(whole)
    for n in where:
        cwd = scratch / str(n)
        shutil.copytree(start, cwd, symlinks=True)
        first = run_killed(argv, n, cwd)
        assert first.killed, (n, first.code, first.err)
        again = run_killed(argv, None, cwd)
        assert again.code == 0, (n, first.calls[-3:], again.err)
        assert "Traceback" not in again.err, (n, again.err)
        assert differing(contents(cwd), expected) == [], (n, first.calls[-3:])
        shutil.rmtree(cwd)


def _without_times(text: str) -> bytes:
    names = "|".join(TIMES)
    values = r'("[^"]*"|\{[^}]*\}|\[[^\]]*\]|[-+.0-9a-zA-Z]+)'
    found, n = re.subn(rf'("(?:{names})": ){values}', r"\1null", text)
    # A seal over a time is another at another time.
    return (re.sub(r'("sha256": )"[0-9a-f]{64}"\n', r"\1null\n", found) if n else found).encode()


def _main(argv, n, cwd, streams, environment, full):
    os.environ.update(environment)
    os.chdir(cwd)
    for path, stream in zip(streams[:2], (1, 2), strict=True):
        os.dup2(os.open(path, os.O_WRONLY), stream)
    import torch

    from saelab import provenance
    from saelab.cli import main

    provenance.datetime = _Standing
    torch.set_num_threads(1)
    _Watch(n, cwd, os.open(streams[2], os.O_WRONLY), full)
    code = main(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


class _Standing(datetime):
    """A clock that stands still, so that files which hold the time can be compared to the byte."""

    @classmethod
    @override
    def now(cls, tz=None):  # pyrefly: ignore[bad-override]
        return datetime(2000, 1, 1, tzinfo=tz)


class _Watch:
    """Writes each call down before it is made, and dies at the `n`-th, or finds the disk full."""

    def __init__(self, n, cwd, log, full):
        self.n, self.cwd, self.log, self.full = n, cwd, log, full
        self.made = 0
        self.fsync, os.fsync = os.fsync, self.traced_fsync  # pyrefly: ignore[bad-assignment]
        sys.addaudithook(self.audited)

    def audited(self, event, arguments):
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes) and flags & WRITES:
                self.note("open", Path(os.fsdecode(path)))
        elif event in CHANGES and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = Path(os.fsdecode(arguments[0]))
            # Whole trees are removed relative to an open directory.
            below = arguments[-1] if event in {"os.remove", "os.rmdir", "os.mkdir"} else -1
            self.note(event, path if below == -1 else _path_of(below) / path)

    def traced_fsync(self, descriptor):
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        self.note("fsync", _path_of(number))
        self.fsync(descriptor)

    def note(self, what, path):
        path = Path(os.path.abspath(path))  # noqa: PTH100 - it resolves no link
        if not path.is_relative_to(self.cwd):
            return
        if self.full and self.made >= self.n:
            # To make a directory durable takes no space.
            if what in {"open", "fsync", "os.mkdir", "os.link"} and not path.is_dir():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif self.made == self.n:
            os.kill(os.getpid(), signal.SIGKILL)
        self.made += 1
        os.write(self.log, f"{what} {path.relative_to(self.cwd)}\n".encode())


def _path_of(descriptor):
    return Path(f"/proc/self/fd/{descriptor}").readlink()

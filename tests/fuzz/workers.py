"""Each case in a process of its own, forked from one that has imported everything, and bounded.

A case may take LIMITS; a process that takes more is ended, and what it had read until then is told.
"""

import faulthandler
import json
import os
import resource
import select
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.mutations import damage
from fuzz.readers import Finding, findings, readers_of

CPU_S = 10.0
"""Of one reader on one file."""
GROWTH_MB = 300
"""Of the peak of memory, beyond what the undamaged file takes."""
WALL_S = 30.0
"""For so long a reader may neither say anything nor compute, as one that waits on a pipe."""
ADDRESSES = 3 << 30
"""Bytes of addresses beyond those at the start, so that no case takes the machine down."""


@dataclass(frozen=True)
class Case:
    """A file below the root, and the seed of its damage; without one it is left whole."""

    file: Path
    seed: int | None
    readers: frozenset[str] | None = None


@dataclass
class Verdict:
    """What became of a case.

    Attributes:
        done: the damage in words.
        spent: processor time by reader, in seconds.
        cpu_s, peak_mb: processor time and peak of memory of the process.
        ended: by which limit it was ended; empty if it was not.
    """

    case: Case
    done: str = ""
    findings: list[Finding] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=dict)
    cpu_s: float = 0.0
    peak_mb: float = 0.0
    growth_mb: float = 0.0
    ended: str = ""

    @property
    def problems(self) -> list[str]:
        """What must not be, one line each."""
        found = [f"{f.reader}: {f.outcome}: {f.text}" for f in self.findings if f.bad]
        found += [f"ended: {self.ended}"] if self.ended else []
        if self.growth_mb > GROWTH_MB:
            found.append(f"memory: {self.growth_mb:.0f} MB more than the whole file takes")
        return found

    @property
    def kind(self) -> str:
        """Which kind of file it is."""
        file = self.case.file
        inside = file.parts[1 if file.parts[0] != "runs" else 2 :]
        first = "store" if file.parts[0] == "store" else inside[0]
        return first if len(inside) == 1 or first == "store" else f"{first}/"

    @property
    def outcome(self) -> str:
        """In one word: the worst of what the readers said."""
        if self.ended:
            return self.ended
        bad = [f.outcome for f in self.findings if f.bad]
        if bad:
            return bad[0]
        return "said" if any(f.outcome == "said" for f in self.findings) else "read"


@dataclass
class _Running:
    """A case under way: since when it has said nothing, and what it had used then."""

    case: Case
    directory: Path
    since: float
    used: float = 0.0
    waits: bool = False
    text: bytes = b""


def run_cases(base: Path, work: Path, cases: Iterable[Case], jobs: int = 2) -> Iterator[Verdict]:
    """The verdicts on `cases` of the files below `base`, in the order in which they are done.

    Each damages a copy of its own below `work`.
    """
    waiting = enumerate(cases)
    running: dict[int, tuple[int, _Running]] = {}
    try:
        while True:
            while len(running) < jobs and (following := next(waiting, None)) is not None:
                number, case = following
                # Paths are of equal length, so that sentences are.
                directory = work / f"{number:06d}"
                reading, process = _fork(case, base, directory)
                running[reading] = (process, _Running(case, directory, time.monotonic()))
            if not running:
                return
            yield from _collect(running)
    finally:
        for process, _ in running.values():
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def _fork(case: Case, base: Path, directory: Path) -> tuple[int, int]:
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        try:
            _child(case, base, directory, writing)
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the parent tells it
            _send(writing, failed=traceback.format_exc())
        finally:
            os._exit(1)
    os.close(writing)
    return reading, process


def _send(writing: int, **values: object) -> None:
    os.write(writing, json.dumps(values).encode() + b"\n")


def _child(case: Case, base: Path, directory: Path, writing: int) -> None:
    faulthandler.disable()  # it would write to pytest's own standard error
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    root = directory / "here"
    owner, readers = readers_of(case.file)
    _copy(base, root, owner)
    if case.seed is not None:
        _send(writing, done=damage(root / case.file, f"{case.seed}:{case.file}"))
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (addresses + ADDRESSES, addresses + ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in readers:
        if case.readers is not None and name not in case.readers:
            continue
        used = time.process_time()
        limit = int(used + CPU_S) + 2
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        _send(writing, begun=name)
        for finding in findings(root, case.file, {name}):
            _send(writing, finding=vars(finding), cpu=time.process_time() - used)


def _copy(base: Path, root: Path, owner: Path) -> None:
    """Copy the run or store at `owner`, and link the others, which nothing writes to."""
    for path in sorted(base.rglob("*")):
        inside = path.relative_to(base)
        if path.is_dir():
            (root / inside).mkdir(parents=True, exist_ok=True)
        elif inside.is_relative_to(owner):
            shutil.copyfile(path, root / inside)
        else:
            os.link(path, root / inside)


def _collect(running: dict[int, tuple[int, _Running]]) -> Iterator[Verdict]:
    for reading in select.select(list(running), [], [], 1.0)[0]:
        process, state = running[reading]
        part = os.read(reading, 1 << 20)
        state.text += part
        if part:
            state.since = time.monotonic()
        else:
            del running[reading]
            os.close(reading)
            yield _verdict(process, state)
    for process, state in running.values():
        if time.monotonic() - state.since > WALL_S:
            # On a busy machine one that computes may have had no turn to say anything.
            used, state.used = state.used, _used(process)
            state.since, state.waits = time.monotonic(), state.used - used < 0.1
            if state.waits:
                os.kill(process, signal.SIGKILL)


def _used(process: int) -> float:
    """Processor time of a process that was not waited for yet, in seconds."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _verdict(process: int, state: _Running) -> Verdict:
    _, status, used = os.wait4(process, 0)
    verdict = Verdict(
        state.case, cpu_s=used.ru_utime + used.ru_stime, peak_mb=used.ru_maxrss / 1024
    )
    begun = ""
    for line in state.text.splitlines():
        values = json.loads(line)
        assert "failed" not in values, f"{state.case}: {values['failed']}"
        verdict.done = values.get("done", verdict.done)
        begun = values.get("begun", begun)
        if "finding" in values:
            finding = Finding(**values["finding"])
            if values["cpu"] > CPU_S:
                finding = Finding(finding.reader, "time", f"took {values['cpu']:.1f} s")
            verdict.findings.append(finding)
            verdict.spent[finding.reader] = values["cpu"]
            begun = ""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        why = "time" if number == signal.SIGXCPU else signal.Signals(number).name
        why = "hang" if state.waits else why
        verdict.ended = f"{why} ({begun or 'at its end'})"
    shutil.rmtree(state.directory, ignore_errors=True)
    return verdict


def growths(verdicts: Iterable[Verdict], whole: Callable[[Path], float]) -> Iterator[Verdict]:
    """The same verdicts with what each took beyond the undamaged file, which `whole` knows."""
    for verdict in verdicts:
        verdict.growth_mb = max(0.0, verdict.peak_mb - whole(verdict.case.file))
        yield verdict

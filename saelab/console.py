"""Output for people: text that cannot break a line, numbers, notes and progress.

Progress goes to standard error: a live bar in a terminal, otherwise a line every few seconds.
"""

import contextlib
import re
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from typing_extensions import override

SECONDS_BETWEEN_LINES = 10.0
SLOW = 1.0
"""Seconds after which work without a bar is announced."""
GLYPHS = {"\n": "↵", "\t": "⇥", "\r": "␍", "": "‿"}
"""Signs for invisible text. A token is empty if its character is shown at the token before."""
_OVERRIDES = re.compile("[\u202a-\u202e]")
_ISOLATES = re.compile("[\u2066-\u2069]")
_CODE = re.compile("<[^<>\\s]{1,40}>|⟨[0-9A-F]+⟩")
"""A name in angle brackets, which right-to-left text would break up."""
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@lru_cache(maxsize=1 << 16)
def visible(text: str) -> str:
    """`text` with newlines, tabs and other invisible or text-reversing characters made visible."""
    if not text.strip(" "):
        return GLYPHS.get(text, "␣" * len(text))
    return text if text.isascii() and text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in GLYPHS:
        return GLYPHS[character]
    # Format and control characters: direction overrides could make a line read backwards.
    if unicodedata.category(character) in {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}:
        return f"⟨{ord(character):04X}⟩"
    return character


def isolated(text: str) -> str:
    """`text` isolated, so that right-to-left text does not reorder its neighbours.

    Unicode's isolates (UAX 9) surround text with such characters; directions that the text leaves
    open are made visible.
    """
    if text.isascii():
        return text
    text = _OVERRIDES.sub(lambda found: _visible(found[0]), text)
    depth = 0
    for mark in _ISOLATES.findall(text):
        depth += -1 if mark == "\u2069" else 1
        if depth < 0:
            break
    if depth:
        text = _ISOLATES.sub(lambda found: _visible(found[0]), text)
    if not any(unicodedata.bidirectional(c) in {"R", "AL", "AN"} for c in text):
        return text
    apart = _CODE.sub("\u2066\\g<0>\u2069", text)
    return f"\u2068{apart}\u2069"


def shown(text: str) -> str:
    """`text` as a cell of a table or a word of a sentence: on one line, and isolated."""
    return isolated(visible(text)) if text else ""


def cells(*texts: str) -> list[Text]:
    """Cells of a table, each `shown`; rich would read square brackets in a plain string."""
    return [Text(shown(text)) for text in texts]


def printable(message: str) -> str:
    """A message of several lines without terminal control characters."""
    return _CONTROLS.sub(lambda found: _visible(found[0]), message)


_silent = False


@contextmanager
def silent() -> Iterator[None]:
    """A context in which nothing is said: another process says the same."""
    global _silent  # noqa: PLW0603 - as standard error is, this is of the whole process
    before, _silent = _silent, True
    try:
        yield
    finally:
        _silent = before


@dataclass(frozen=True)
class WorkStep:
    """Where the work is: `done` of `total` units in `seconds`; a total of 0: unknown."""

    title: str
    done: int = 0
    total: int = 0
    unit: str = ""
    seconds: float = 0.0


_listener: Callable[[WorkStep], None] | None = None


@contextmanager
def heard_by(listener: Callable[[WorkStep], None]) -> Iterator[None]:
    """A context in which `listener` also gets every step of progress and every `stage`."""
    global _listener  # noqa: PLW0603 - as standard error is, this is of the whole process
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def stage(title: str) -> None:
    """Tell the listener, if there is one, what begins; for work of which no bar is shown."""
    _report(WorkStep(title))


def _report(report: WorkStep) -> None:
    if _listener is not None:
        _listener(report)


class _Told:
    """Standard error at this moment; no work is lost if the terminal, or its disk, is gone."""

    def __init__(self) -> None:
        # A live bar replaces standard error by a stream of its own, which writes to this one.
        self._stream = sys.stderr

    @property
    def encoding(self) -> str:
        return self._stream.encoding

    def write(self, text: str) -> int:
        if not _silent:
            with contextlib.suppress(OSError):
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def isatty(self) -> bool:
        return not _silent and self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


def say(sentence: str) -> None:
    """Print a line about the current work on standard error."""
    print(printable(sentence), file=_Told(), flush=True)


def note(sentence: str) -> None:
    """Say what was done differently from what was asked."""
    say(f"Note: {sentence}")


def si(number: float | int) -> str:
    """A count with three significant figures: 512, 48.1k, 2.05M, 1.20G, 7.9T."""
    for factor, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            return f"{number / factor:.3g}{suffix}"
    return f"{number:.3g}"


def in_bytes(n: int) -> str:
    """A size for people: 812 kB, 12.3 GB."""
    for factor, unit in (
        (10**15, "PB"),
        (10**12, "TB"),
        (10**9, "GB"),
        (10**6, "MB"),
        (10**3, "kB"),
    ):
        if n >= factor:
            return f"{n / factor:.3g} {unit}"
    return f"{n} B"


def duration(seconds: float | int) -> str:
    """A duration for people: 8 s, 12 min, 3.4 h, 2.1 days."""
    for size, unit, limit in ((1, "s", 120), (60, "min", 120), (3600, "h", 48)):
        if seconds < limit * size:
            shown = f"{seconds / size:.1f}" if unit == "h" else f"{seconds / size:.0f}"
            return f"{shown} {unit}"
    return f"{seconds / 86400:.1f} days"


class _RateColumn(ProgressColumn):
    @override
    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{si(rate)} {task.fields['unit']}/s")


@dataclass
class Bar:
    """The running bar: `advance` moves it and replaces the figures after it."""

    title: str
    total: int
    unit: str
    done: int = 0
    before: int = 0
    """Units done by an earlier process; they do not count for the speed of this one."""
    _progress: Progress | None = None
    _started: float = field(default_factory=time.monotonic)
    _printed: float = field(default_factory=time.monotonic)

    def advance(self, amount: int, figures: str = "") -> None:
        """Count `amount` more units; `figures` (e.g. "FVU 0.031") replaces the figures shown."""
        self.done += amount
        self._tell()
        if self._progress is not None:
            task = self._progress.task_ids[0]
            self._progress.update(task, advance=amount, figures=figures)
        elif time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            print(self._line(figures), file=_Told(), flush=True)

    def _tell(self) -> None:
        seconds = time.monotonic() - self._started
        _report(
            WorkStep(
                self.title, self.done - self.before, self.total - self.before, self.unit, seconds
            )
        )

    def _line(self, figures: str) -> str:
        elapsed = time.monotonic() - self._started
        rate = (self.done - self.before) / max(elapsed, 1e-9)
        # Work comes in whole batches, so the last one may exceed the total.
        left = max(0, self.total - self.done) / max(rate, 1e-9)
        share = f"{min(100, 100 * self.done / max(1, self.total)):.0f}%"
        timing = f"{si(rate)} {self.unit}/s, {duration(left)} left"
        return f"{self.title}: {share} ({timing})" + (f"  {figures}" if figures else "")


@contextmanager
def told_if_slow(message: str) -> Iterator[None]:
    """Say what is being done, once it has taken SLOW seconds."""
    timer = threading.Timer(SLOW, say, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def progress(title: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
    """Show work of `total` units; an earlier process did `done` of them."""
    console = Console(file=_Told())  # pyrefly: ignore[bad-argument-type]
    if not console.is_terminal:
        bar = Bar(title, total, unit, done, before=done)
        bar._tell()
        yield bar
        elapsed = time.monotonic() - bar._started
        rate = (bar.done - done) / max(elapsed, 1e-9)
        summary = f"{title}: {si(bar.done)} {unit} in {elapsed:.1f} s ({si(rate)} {unit}/s)"
        print(summary, file=_Told(), flush=True)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        _RateColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console) as live:
        live.add_task(title, total=total, completed=done, unit=unit, figures="")
        yield Bar(title, total, unit, done, before=done, _progress=live)

"""Stopping cleanly: the effect of SIGTERM, SIGHUP and Ctrl-C."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
AGAIN = 0.05
"""Seconds after which a stop is raised again where Python ignored it."""
Handler = Callable[[int, FrameType | None], object]


class Stopped(SystemExit):
    """A signal has stopped the work; the exit code is 128 plus its number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Record the signal; a second one stops at once."""
        if self.signal is None:
            self.signal = number
        elif number != signal.SIGHUP:  # Which comes twice when a terminal goes.
            raise Stopped(number)


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """A context in which SIGTERM, SIGHUP and SIGINT set a flag instead of ending the process.

    Signals can only be handled in the main thread. In other threads (a notebook's worker, the app)
    the request is never set, and the process handles signals as before. Ignored signals (nohup)
    stay ignored.
    """
    request = StopRequest()
    with _handled((*SIGNALS, signal.SIGINT), request.note):
        yield request


@contextmanager
def stopped_by_signal() -> Iterator[None]:
    """A context in which SIGTERM and SIGHUP raise `Stopped`, so that every `with` block is left.

    Where Python ignores errors, as in a `__del__` that a garbage collection runs, they and
    KeyboardInterrupt are raised again a little later.
    """
    ended = False

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal ended
        if ended and number == signal.SIGHUP:
            return
        ended = True
        raise Stopped(number)

    with _raised_again(), _handled(SIGNALS, stop):
        yield


@contextmanager
def _raised_again() -> Iterator[None]:
    """A context in which a stop that Python ignores is raised again a little later."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    tell, alarm = sys.unraisablehook, signal.getsignal(signal.SIGALRM)
    lost: list[BaseException] = []

    def again(_number: int, _frame: FrameType | None) -> None:
        raise lost[-1]

    def ignored(error: "sys.UnraisableHookArgs") -> None:
        if not isinstance(error.exc_value, (Stopped, KeyboardInterrupt)):
            tell(error)
            return
        # No thread, since whoever is interrupted may hold the lock that a thread starts with.
        lost.append(error.exc_value)
        signal.signal(signal.SIGALRM, again)
        signal.setitimer(signal.ITIMER_REAL, AGAIN)

    sys.unraisablehook = ignored
    try:
        yield
    finally:
        sys.unraisablehook = tell
        if lost:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, alarm)


@contextmanager
def _handled(numbers: tuple[signal.Signals, ...], handler: Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    # None is a handler outside Python, which could not be restored.
    taken = [number for number in numbers if before[number] not in (signal.SIG_IGN, None)]
    try:
        for number in taken:
            signal.signal(number, handler)
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])

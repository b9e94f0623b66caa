"""Stopping cleanly: the effect of SIGTERM, SIGHUP and Ctrl-C."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
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
    """A context in which SIGTERM and SIGHUP raise `Stopped`, so that every `with` block is left."""
    ended = False

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal ended
        if ended and number == signal.SIGHUP:
            return
        ended = True
        raise Stopped(number)

    with _handled(SIGNALS, stop):
        yield


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

"""Ending politely: what SIGTERM, SIGHUP and Ctrl-C do."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], object]


class Stopped(SystemExit):
    """A signal has ended the work; the exit code is 128 and its number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


class StopRequest:
    """Whether, and by which signal, this process was asked to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Remember the signal; a second one stops at once."""
        if self.signal is None:
            self.signal = number
        elif number != signal.SIGHUP:  # Which comes twice when a terminal goes.
            raise Stopped(number)


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Within this context SIGTERM, SIGHUP and SIGINT set a flag instead of ending the process.

    Signals can only be handled in the main thread; elsewhere (a notebook's worker, the app) the
    request is never set and the process's own handling stays. What is ignored (nohup) stays so.
    """
    request = StopRequest()
    with _handled((*SIGNALS, signal.SIGINT), request.note):
        yield request


@contextmanager
def stopped_by_signal() -> Iterator[None]:
    """Within this context SIGTERM and SIGHUP raise `Stopped`, so that every `with` is left."""
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
    # None is a handler that is not of Python, and could not be put back.
    taken = [number for number in numbers if before[number] not in (signal.SIG_IGN, None)]
    try:
        for number in taken:
            signal.signal(number, handler)
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])

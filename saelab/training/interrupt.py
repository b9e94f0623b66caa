"""Stopping politely: SIGTERM and Ctrl-C end the current step, save, and then exit."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether, and by which signal, this process was asked to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Remember the signal; a second one of any kind is left to the default handler."""
        self.signal = number
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Within this context SIGTERM and SIGINT set a flag instead of ending the process.

    Signals can only be handled in the main thread; elsewhere (a notebook's worker, the app) the
    request is never set and the process's own handling stays.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {
        number: signal.signal(number, request.note) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

"""Writing units while the next one is computed."""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from saelab.activations.columns import Columns
from saelab.activations.parallel import WRITERS
from saelab.activations.prepare import Rows
from saelab.activations.writer import StoreWriter


class BackgroundWriter:
    """A store's writer in threads of its own; a context manager that waits for the last unit.

    At most `WRITERS` units are being written while the caller fills the next: one unit more than
    that and as many permuted copies of a site are the most that is in memory. An error of a thread
    is raised by a later `write_unit`, or at the end.
    """

    def __init__(self, writer: StoreWriter) -> None:
        self._writer = writer
        self._threads = ThreadPoolExecutor(WRITERS, thread_name_prefix="store-writer")
        self._running: deque[Future[None]] = deque()

    def write_unit(self, unit: int, activations: Mapping[str, Rows], columns: Columns) -> None:
        """Start to commit a unit, once a thread is free; the arrays are handed over."""
        self._wait_until(WRITERS - 1)
        task = self._threads.submit(self._writer.write_unit, unit, activations, columns)
        self._running.append(task)

    def _wait_until(self, running: int) -> None:
        """Wait until at most so many units are being written."""
        while len(self._running) > running:
            self._running.popleft().result()

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown()
        if error is None:
            self._wait_until(0)

"""Writing units to disk while the next one is computed."""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TypeGuard

import torch
from torch import Tensor

from saelab.activations.columns import Columns
from saelab.activations.parallel import WRITERS
from saelab.activations.prepare import Rows
from saelab.activations.writer import StoreWriter


class BackgroundWriter:
    """A store's writer with threads of its own; a context manager that waits for the last unit.

    At most `WRITERS` units are written while the caller fills the next one. So memory holds at most
    one unit more than that, and `WRITERS` permuted copies. A thread's error is raised by a later
    `write_unit`, or at the end.

    Activations may be on a GPU that still computes them. A CUDA stream of its own copies them,
    while the caller queues more work.
    """

    def __init__(self, writer: StoreWriter) -> None:
        self._writer = writer
        self._stream: torch.cuda.Stream | None = None
        self._threads = ThreadPoolExecutor(WRITERS, thread_name_prefix="store-writer")
        self._running: deque[Future[None]] = deque()

    def write_unit(self, unit: int, activations: Mapping[str, Rows], columns: Columns) -> None:
        """Start to write a unit once a thread is free; the caller must not use the arrays again."""
        self._wait_until(WRITERS - 1)
        ready = None
        if on_gpu := [rows for rows in activations.values() if _is_on_gpu(rows)]:
            self._stream = self._stream or torch.cuda.Stream(on_gpu[0].device)
            ready = torch.cuda.Event(blocking=True)
            ready.record(torch.cuda.current_stream(on_gpu[0].device))
        self._running.append(self._threads.submit(self._write, unit, [activations], columns, ready))

    def _write(
        self,
        unit: int,
        handed_over: list[Mapping[str, Rows]],
        columns: Columns,
        ready: torch.cuda.Event | None,
    ) -> None:
        if ready is not None:
            # Wait here, not in the stream, which meanwhile serves units that are ready.
            ready.synchronize()
        with self._beside():
            # This is the last reference, so the memory is free again while the disk writes.
            prepared = self._writer.prepare(unit, handed_over.pop(), columns)
        self._writer.commit(prepared)

    def _beside(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _wait_until(self, running: int) -> None:
        """Wait until at most this many units are being written."""
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


def _is_on_gpu(rows: Rows) -> TypeGuard[Tensor]:
    return isinstance(rows, Tensor) and rows.is_cuda

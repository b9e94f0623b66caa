"""Work on several blocks at once: reading and checksums run outside Python's GIL."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar, cast

A = TypeVar("A")
B = TypeVar("B")

WORKERS = min(4, os.cpu_count() or 1)
"""With more threads, waiting for the GIL takes longer than reading."""
WRITERS = min(6, max(2, (os.cpu_count() or 1) // 2))
"""Units that are written at once: while one waits for the disk, the others permute and sum their
rows. Each takes memory, but beside a GPU two do not keep up with the forward passes."""


def parallel_results(function: Callable[[A], B], items: Iterable[A]) -> Generator[B, None, None]:
    """The results in the order of the items, each as soon as it and all before it are ready.

    `function` must not call this function. If the caller stops early, no thread is left working.
    """
    running = [_threads(os.getpid()).submit(function, item) for item in items]
    try:
        for task in running:
            yield task.result()
    finally:
        for task in running:
            task.cancel()
        wait(running)


def results_ahead(function: Callable[[A], B], items: Sequence[A]) -> Generator[B, None, None]:
    """As `parallel_results`, for large results: only as many as there are threads wait.

    A single result is made by the caller's own thread.
    """
    if len(items) < 2:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="ahead") as pool:
        running: deque[Future[B]] = deque()
        try:
            for item in items:
                running.append(pool.submit(function, item))
                if len(running) > WORKERS:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for task in running:
                task.cancel()


def one_ahead(items: Iterator[A]) -> Generator[A, None, None]:
    """The items; a thread makes the next one while the caller works on one."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        running = pool.submit(next, items, end)
        while (item := running.result()) is not end:
            running = pool.submit(next, items, end)
            yield cast("A", item)


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """The thread pool, kept since starting it is as slow as reading a block; a fork has its own."""
    return ThreadPoolExecutor(WORKERS, thread_name_prefix=f"blocks-{process}")

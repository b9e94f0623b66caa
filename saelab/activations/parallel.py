"""Work on several blocks at once: reading and checksums run outside Python's lock."""

import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

WORKERS = min(4, os.cpu_count() or 1)
"""More wait for Python's lock more than they read."""
WRITERS = min(4, max(2, (os.cpu_count() or 1) // 4))
"""Units that are written at once. While one waits for the disk, the others permute and sum theirs;
each takes memory, and beside a GPU two do not keep up with the forward passes."""


def parallel_results(function: Callable[[A], B], items: Iterable[A]) -> Generator[B, None, None]:
    """The results in the order of the items, each as soon as it and those before it are there.

    `function` must not call this. When the caller stops early nothing is still at work.
    """
    running = [_threads(os.getpid()).submit(function, item) for item in items]
    try:
        for task in running:
            yield task.result()
    finally:
        for task in running:
            task.cancel()
        wait(running)


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Kept, since starting them takes as long as reading a block; a forked process has none."""
    return ThreadPoolExecutor(WORKERS, thread_name_prefix=f"blocks-{process}")

"""Work on several blocks at once: reading, checksums and sums all run outside Python's lock."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

WORKERS = min(4, os.cpu_count() or 1)
"""More wait for Python's lock more than they read."""
WRITERS = min(4, max(2, (os.cpu_count() or 1) // 4))
"""Units that are written at once. While one waits for the disk, the others permute and sum theirs;
each takes memory, and beside a GPU two do not keep up with the forward passes."""


def parallel_map(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """`[function(item) for item in items]`, a few at a time; the first exception is raised."""
    return list(parallel_results(function, items))


def parallel_results(function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """The results in the order of the items, each as soon as it and those before it are there."""
    with ThreadPoolExecutor(WORKERS) as pool:
        yield from pool.map(function, items)

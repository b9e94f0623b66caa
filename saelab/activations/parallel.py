"""Work on several blocks at once: reading, checksums and sums all run outside Python's lock."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

WORKERS = min(4, os.cpu_count() or 1)


def parallel_map(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """`[function(item) for item in items]`, a few at a time; the first exception is raised."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(function, items))

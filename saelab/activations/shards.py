"""A text's shards: made by threads ahead of reading, kept in files, shared by processes."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from saelab.activations.windows import Shard, belongs, read_shard, write_shard
from saelab.files import temporary_directory
from saelab.ranks import Ranks

WORKERS = 2
"""Number of threads: one reads text and collects ids on one core, while all cores tokenise the
other's text."""
AHEAD = 6
"""Shards that are made before they are asked for."""
PATIENCE = 20.0
"""Seconds to wait for another process's shard before making it here: that process may have died."""
POLL = 0.02
FIRST = "000000.tokens"


class Shards:
    """Random access to the shards that `make` makes; each is made once and read from its file.

    `kept` is a directory that may hold shards already. It is used only if they are of this key.
    """

    def __init__(
        self, make: Callable[[int], Shard | None], key: str, kept: Path | None = None
    ) -> None:
        self._make, self._key = make, key
        self._temporary: Path | None = None
        self._kept = kept if kept is not None and belongs(kept / FIRST, key) else None
        self._ranks = Ranks()
        self._patience = PATIENCE
        self._ahead = 0
        self._pool: ThreadPoolExecutor | None = None
        self._running: dict[int, Future[Shard | None]] = {}
        self._load = lru_cache(maxsize=3)(self._read)
        self._end = sys.maxsize

    def __getitem__(self, number: int) -> Shard:
        """A shard. The last has share 1; no later one may be asked for."""
        shard = self._load(number)
        if shard.share >= 1:
            self._end = number + 1
        return shard

    def keep_in(self, directory: Path, ranks: Ranks) -> None:
        """Keep shards in this directory from now on; each process of `ranks` makes its part."""
        self._kept, self._ranks = directory, ranks
        directory.mkdir(parents=True, exist_ok=True)
        if self._temporary is None:
            return
        for path in sorted(self._temporary.glob("*.tokens")):
            if not (target := directory / path.name).exists():
                write_shard(target, read_shard(path, self._key), self._key)

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """A context in which threads make the shards after those asked for."""
        self._ahead = AHEAD
        try:
            with ThreadPoolExecutor(WORKERS, thread_name_prefix="tokenise") as self._pool:
                try:
                    yield
                finally:
                    self._pool.shutdown(wait=False, cancel_futures=True)
        finally:
            self._ahead, self._pool = 0, None
            self._running.clear()

    def _read(self, number: int) -> Shard:
        if self._pool is not None:
            for n in range(number, number + 1 + self._ahead * self._ranks.world):
                self._start(self._pool, n)
        path = self._path(number)
        if path.exists():
            self._patience = PATIENCE
        elif not self._ranks.owns(number):
            self._wait_for(path)
        running = self._running.pop(number, None)
        if running is not None:
            shard = running.result()
        elif path.exists():
            return read_shard(path, self._key)
        else:
            shard = self._produce(number)
        assert shard is not None, "nobody asks for a shard behind the last"
        return shard

    def _start(self, pool: ThreadPoolExecutor, number: int) -> None:
        """Let a thread make a shard, unless it exists or another process makes it."""
        mine = self._ranks.owns(number) and number not in self._running
        if mine and number < self._end and not self._path(number).exists():
            self._running[number] = pool.submit(self._produce, number)

    def _produce(self, number: int) -> Shard | None:
        shard = self._make(number)
        if shard is not None:
            write_shard(self._path(number), shard, self._key)
        return shard

    def _path(self, number: int) -> Path:
        name = f"{number:06d}.tokens"
        if self._kept is not None:
            path = self._kept / name
            # The store may be somebody else's and read-only.
            if path.exists() or os.access(self._kept, os.W_OK):
                return path
        self._temporary = self._temporary or temporary_directory(self, "saelab-tokens-")
        return self._temporary / name

    def _wait_for(self, path: Path) -> None:
        """Wait for another process, but not again after it seems to have died."""
        until = time.monotonic() + self._patience
        while not path.exists():
            if time.monotonic() > until:
                self._patience = 0.0
                return
            time.sleep(POLL)

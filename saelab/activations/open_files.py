"""Sealed files that stay open between reads: to open one takes longer than to read a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from saelab.activations.sealed import SealedFile

MOST = 64
"""Files that one site keeps open; a process may often have 1024."""


class OpenFiles:
    """Up to `MOST` files that nobody reads now; closed with this object."""

    def __init__(self) -> None:
        self._idle: dict[Path, SealedFile] = {}
        self._lock = Lock()

    @contextmanager
    def using(self, path: Path) -> Iterator[SealedFile]:
        """The file, which no other thread uses meanwhile.

        Raises:
            DamagedStoreError: it cannot be opened; an error in the block closes it.
        """
        with self._lock:
            file = self._idle.pop(path, None)
        file = SealedFile(path) if file is None else file
        try:
            yield file
        except BaseException:
            file.close()
            raise
        with self._lock:
            unwanted = self._idle.pop(path, None)
            self._idle[path] = file
            if len(self._idle) > MOST:
                unwanted = self._idle.pop(next(iter(self._idle)))
        if unwanted is not None:
            unwanted.close()

    def __del__(self) -> None:
        for file in self._idle.values():
            file.close()

"""The nearest row of another decoder for every row, exactly, both ways by one set of cosines."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from feature_browser.data.weights import DecoderRows

ROWS, COLUMNS = 512, 1024
"""Cosines held at a time: 2 MiB, which stay in the processor's cache."""
STRETCH = 4096
"""Rows after which a search says how far it is, shared out among the workers."""
WORKERS = min(8, os.cpu_count() or 1)
"""Threads, each of which multiplies on one core, see `launch.environment`."""


@dataclass(frozen=True)
class Nearest:
    """Of each row, the row of another decoder with the highest cosine, the first of equal ones.

    For signed codes cosines are compared, and given, without their sign.
    """

    row: Int[ndarray, " latent"]
    cosine: Float[ndarray, " latent"]

    @classmethod
    def unknown(cls, n: int) -> "Nearest":
        """What is known of `n` rows at first."""
        return cls(np.zeros(n, np.int64), np.full(n, -np.inf, np.float32))


@dataclass(frozen=True)
class Search:
    """What is found when the first `done` rows of this decoder were compared with all others."""

    across: Nearest
    back: Nearest
    done: int = 0

    @property
    def share(self) -> float:
        """How much of the search is done."""
        return self.done / len(self.across.row)


def nearest(
    this: DecoderRows, other: DecoderRows, *, report: Callable[[float], None] = lambda share: None
) -> tuple[Nearest, Nearest]:
    """Each row's nearest in the other decoder, both ways; `report` is told the share done."""
    found = begun = begin(this, other)
    for found in search(this, other, begun):
        report(found.share)
    return found.across, found.back


def begin(this: DecoderRows, other: DecoderRows) -> Search:
    """A search that has compared nothing yet."""
    return Search(Nearest.unknown(len(this.rows)), Nearest.unknown(len(other.rows)))


def search(this: DecoderRows, other: DecoderRows, begun: Search) -> Iterator[Search]:
    """Go on from `begun` to the end, a stretch of rows at a time."""
    while begun.done < len(this.rows):
        stop = min(len(this.rows), begun.done + STRETCH)
        bounds = np.linspace(begun.done, stop, WORKERS + 1).astype(int).tolist()
        parts = [_beside(_stretch, this, other, begun.back, rows) for rows in pairwise(bounds)]
        begun = _joined(begun, [part.result() for part in parts], bounds)
        yield begun


def _beside(
    work: Callable[..., tuple[Nearest, Nearest]], *arguments: object
) -> Future[tuple[Nearest, Nearest]]:
    """What `work` gives, in a thread that no ending server waits for."""
    future: Future[tuple[Nearest, Nearest]] = Future()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _joined(begun: Search, parts: list[tuple[Nearest, Nearest]], bounds: list[int]) -> Search:
    across = Nearest(begun.across.row.copy(), begun.across.cosine.copy())
    back = begun.back
    for (forth, towards), (start, stop) in zip(parts, pairwise(bounds), strict=True):
        across.row[start:stop], across.cosine[start:stop] = forth.row, forth.cosine
        better = towards.cosine > back.cosine
        back = Nearest(
            np.where(better, towards.row, back.row), np.where(better, towards.cosine, back.cosine)
        )
    return Search(across, back, bounds[-1])


def _stretch(
    this: DecoderRows, other: DecoderRows, back: Nearest, rows_of_this: tuple[int, int]
) -> tuple[Nearest, Nearest]:
    """Compare a range of rows of this decoder with all of the other; `back`: what is known."""
    start, stop = rows_of_this
    across, back = Nearest.unknown(stop - start), Nearest(back.row.copy(), back.cosine.copy())
    # The same memory each time: fresh pages would cost as much as the maxima.
    held = np.empty(ROWS * COLUMNS, np.float32)
    for top in range(start, stop, ROWS):
        rows = this.rows[top : min(stop, top + ROWS)]
        for left in range(0, len(other.rows), COLUMNS):
            columns = other.rows[left : left + COLUMNS]
            shape = len(rows), len(columns)
            cosines = np.matmul(rows, columns.T, out=held[: shape[0] * shape[1]].reshape(shape))
            if this.signed or other.signed:
                np.abs(cosines, out=cosines)
            _improve(across, cosines, top - start, left)
            _improve(back, cosines.T, left, top)
    return across, back


def _improve(found: Nearest, cosines: Float[ndarray, "row column"], at: int, first: int) -> None:
    """Take in a tile whose rows begin at row `at` of `found`, its columns at `first`."""
    best = cosines.max(axis=1)
    # Where a maximum stands is slow to find; after a few tiles few rows have a new one.
    better = np.flatnonzero(best > found.cosine[at : at + len(best)])
    found.row[at + better] = first + cosines[better].argmax(axis=1)
    found.cosine[at + better] = best[better]

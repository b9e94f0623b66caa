"""Matching two large decoders takes a while: it runs beside the app, and what it finds is kept."""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from feature_browser.data.weights import DecoderRows, width
from feature_browser.pages.compare.correspondence import Correspondence, correspond, of_nearest
from feature_browser.pages.compare.nearest import Nearest, Search, begin, search
from saelab.config import UsageError
from saelab.formats.hdf5_file import Hdf5Arrays, read_hdf5, write_hdf5

COSINES_AT_ONCE = 2**26
"""Up to so many cosines, a fifth of a second's work, nobody waits for."""
DIRECTORY = "comparisons"
FORMAT = "saelab-comparison/2"
KEPT = 8
SECONDS_BETWEEN_KEEPS = 10.0


@dataclass(frozen=True)
class WeightsFile:
    """One side: a weights file as it was at some time, and how to read its decoder."""

    path: Path
    stamp: int
    read: Callable[[], DecoderRows] = field(compare=False)


@dataclass(frozen=True)
class Progress:
    """Which share of a comparison is done, and how long the rest will take; None: not known yet."""

    share: float
    seconds_left: float | None = None


@dataclass
class Job:
    """A comparison that runs, or ran, in a thread of its own.

    Attributes:
        progress: how far it is.
        found, problem: its result, one or the other, once it is done.
    """

    progress: Progress = Progress(0.0)
    found: Correspondence | None = None
    problem: str = ""
    thread: threading.Thread | None = None


_jobs: dict[tuple[WeightsFile, WeightsFile], Job] = {}
_lock = threading.Lock()


def matching(this: WeightsFile, other: WeightsFile) -> Correspondence | Progress:
    """How the latents of two runs correspond, or how far finding out is.

    The first call starts the work: small decoders are matched at once, what was found before is
    read from `comparisons/` in the directory of one of the runs, and the rest takes its time. A
    search that was broken off goes on from where it was last kept.

    Raises:
        UsageError: a weights file is damaged.
    """
    first, second = sorted((this, other), key=lambda weights: weights.path)
    with _lock:
        job = _jobs.get((first, second))
        if job is None:
            job = _jobs[first, second] = _started(first, second)
            while len(_jobs) > KEPT:
                del _jobs[next(iter(_jobs))]
        problem = job.problem
    if problem:
        raise UsageError(problem)
    if job.found is None:
        return job.progress
    return job.found if first is this else job.found.turned()


def _started(first: WeightsFile, second: WeightsFile) -> Job:
    job = Job()
    sizes = [width(weights.path)[0] for weights in (first, second)]
    kept = _kept_at(first, second)
    begun = _read(kept, *sizes)
    if begun is not None and begun.share == 1:
        job.found = of_nearest(begun.across, begun.back)
        return job
    if sizes[0] * sizes[1] <= COSINES_AT_ONCE:
        job.found = correspond(first.read(), second.read())
        return job
    arguments = (job, kept, first, second, begun)
    job.thread = threading.Thread(target=_run, args=arguments, daemon=True)
    job.thread.start()
    return job


def _run(
    job: Job, kept: Path, first: WeightsFile, second: WeightsFile, begun: Search | None
) -> None:
    try:
        job.found = _searched(job, kept, first.read(), second.read(), begun)
    except (UsageError, MemoryError) as error:
        job.problem = str(error) or "There is not enough memory to compare the decoders."


def _searched(
    job: Job, kept: Path, first: DecoderRows, second: DecoderRows, begun: Search | None
) -> Correspondence:
    found = begun = begun or begin(first, second)
    started = written = time.monotonic()
    for found in search(first, second, begun):
        now = time.monotonic()
        pace = (found.share - begun.share) / max(now - started, 1e-9)
        job.progress = Progress(found.share, (1 - found.share) / pace)
        if found.share == 1 or now - written >= SECONDS_BETWEEN_KEEPS:
            _write(kept, found)
            written = now
    return of_nearest(found.across, found.back)


def _write(kept: Path, found: Search) -> None:
    arrays = {
        f"{name}/{key}": values
        for name, side in (("first", found.across), ("second", found.back))
        for key, values in (("row", side.row), ("cosine", side.cosine))
    }
    try:
        write_hdf5(kept, arrays, {"format": FORMAT, "done": found.done})
    except OSError:
        # A directory that cannot be written: it is found again by the next server.
        return


def _kept_at(first: WeightsFile, second: WeightsFile) -> Path:
    """Where the result is kept: by what was compared, so that retrained runs are compared anew."""
    facts = [[str(w.path.resolve()), w.stamp, w.path.stat().st_size] for w in (first, second)]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return first.path.parent / DIRECTORY / f"{name}.h5"


def _read(path: Path, n_first: int, n_second: int) -> Search | None:
    """What an earlier search found; None if there was none, or its file is not as written."""
    try:
        arrays = read_hdf5(path)
        facts = arrays.facts
        done = facts["done"]
        if facts["format"] != FORMAT or not isinstance(done, int) or not 0 < done <= n_first:
            return None
        forth = _side(arrays, "first", done, (n_first, n_second))
        back = _side(arrays, "second", n_second, (n_second, n_first))
    except (OSError, KeyError, ValueError):
        return None
    return Search(forth, back, done)


def _side(arrays: Hdf5Arrays, name: str, known: int, sizes: tuple[int, int]) -> Nearest:
    """One side of a search that has got as far as its row `known`."""
    row, cosine = arrays[f"{name}/row"], arrays[f"{name}/cosine"]
    n, others = sizes
    whole = row.shape == cosine.shape == (n,) and row.dtype.kind == "i"
    if not whole or row.min() < 0 or row.max() >= others or not np.isfinite(cosine[:known]).all():
        raise ValueError(f"{name} is not a side of this comparison")
    return Nearest(row.astype(np.int64), cosine.astype(np.float32))

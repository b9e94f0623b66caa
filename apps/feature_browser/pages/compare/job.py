"""Matching two decoders takes time: it runs in the background, and what took long is kept."""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from feature_browser.data.weights import DecoderRows, width
from feature_browser.pages.compare.correspondence import Correspondence, of_nearest
from feature_browser.pages.compare.nearest import Nearest, Search, begin, search
from saelab.config import UsageError
from saelab.formats.hdf5_file import Hdf5Arrays, read_hdf5, write_hdf5

COSINES_AT_ONCE = 2**26
"""Up to this number of cosines, a fifth of a second's work, the page waits."""
INITIAL_AT_ONCE = 2**24
"""The same for initial decoders: they are drawn first, and come on top."""
KEPT_FROM = 2**24
"""From this number of cosines on, reading a result is faster than finding it again."""
DIRECTORY = "comparisons"
FORMAT = "saelab-comparison/2"
KEPT = 16
SECONDS_BETWEEN_KEEPS = 10.0


@dataclass(frozen=True)
class WeightsFile:
    """One side: a weights file at some time, and how to read its decoder.

    Attributes:
        initial: whether the decoder is that of the file before training, drawn anew.
    """

    path: Path
    stamp: int
    read: Callable[[], DecoderRows] = field(compare=False)
    initial: bool = False


@dataclass(frozen=True)
class Progress:
    """The share of a comparison that is done, and the remaining time; None if unknown."""

    share: float
    seconds_left: float | None = None


@dataclass
class Job:
    """A comparison in a thread of its own.

    Attributes:
        progress: its progress.
        found, problem: its result or its problem, once it is done.
        short: whether the page waits for it.
    """

    progress: Progress = Progress(0.0)
    found: Correspondence | None = None
    problem: str = ""
    thread: threading.Thread | None = None
    short: bool = False


_jobs: dict[tuple[WeightsFile, WeightsFile], Job] = {}
_lock = threading.Lock()


def matching(this: WeightsFile, other: WeightsFile) -> Correspondence | Progress:
    """The correspondence of two runs' latents, or the progress of its computation.

    The first call starts the work beside the page, which waits for small decoders. Earlier results
    are read from `comparisons/` in the directory of one of the runs. An interrupted search
    continues from its last saved state.

    Raises:
        UsageError: a weights file is damaged.
    """
    first, job = _asked(this, other)
    if job.short and job.thread is not None:
        job.thread.join()
    if job.problem:
        raise UsageError(job.problem)
    if job.found is None:
        return job.progress
    return job.found if first is this else job.found.turned()


def _asked(this: WeightsFile, other: WeightsFile) -> tuple[WeightsFile, Job]:
    """The side that comes first, and the job, which is started if it is new."""
    first, second = sorted((this, other), key=lambda weights: weights.path)
    with _lock:
        job = _jobs.get((first, second))
        if job is None:
            job = _jobs[first, second] = _started(first, second)
            while len(_jobs) > KEPT:
                del _jobs[next(iter(_jobs))]
    return first, job


def _n_cosines(first: WeightsFile, second: WeightsFile) -> int:
    return width(first.path)[0] * width(second.path)[0]


def is_short(first: WeightsFile, second: WeightsFile) -> bool:
    """Whether a page waits until the two are matched."""
    most = INITIAL_AT_ONCE if first.initial else COSINES_AT_ONCE
    return _n_cosines(first, second) <= most


def _started(first: WeightsFile, second: WeightsFile) -> Job:
    job = Job(short=is_short(first, second))
    kept = _kept_at(first, second)
    begun = _read(kept, *(width(weights.path)[0] for weights in (first, second)))
    if begun is not None and begun.share == 1:
        job.found = of_nearest(begun.across, begun.back)
        return job
    where = None if job.short and _n_cosines(first, second) < KEPT_FROM else kept
    arguments = (job, where, first, second, begun)
    job.thread = threading.Thread(target=_run, args=arguments, daemon=True)
    job.thread.start()
    return job


def _run(
    job: Job, kept: Path | None, first: WeightsFile, second: WeightsFile, begun: Search | None
) -> None:
    try:
        job.found = _searched(job, kept, first.read(), second.read(), begun)
    except (UsageError, OSError, MemoryError) as error:
        job.problem = str(error) or "There is not enough memory to compare the decoders."


def _searched(
    job: Job, kept: Path | None, first: DecoderRows, second: DecoderRows, begun: Search | None
) -> Correspondence:
    found = begun = begun or begin(first, second)
    started = written = time.monotonic()
    for found in search(first, second, begun):
        now = time.monotonic()
        pace = (found.share - begun.share) / max(now - started, 1e-9)
        job.progress = Progress(found.share, (1 - found.share) / pace)
        if kept is not None and (found.share == 1 or now - written >= SECONDS_BETWEEN_KEEPS):
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
        # The directory is read-only: the next server computes it again.
        return


def _kept_at(first: WeightsFile, second: WeightsFile) -> Path:
    """The path of the result; its name follows from the weights, so retrained runs have another."""
    facts = [
        [str(w.path.resolve()), w.stamp, w.path.stat().st_size, *(["initial"] * w.initial)]
        for w in (first, second)
    ]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return first.path.parent / DIRECTORY / f"{name}.h5"


def _read(path: Path, n_first: int, n_second: int) -> Search | None:
    """An earlier search's result; None if there is none, or its file is invalid."""
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
    """One side of a search that is done up to its row `known`."""
    row, cosine = arrays[f"{name}/row"], arrays[f"{name}/cosine"]
    n, others = sizes
    whole = row.shape == cosine.shape == (n,) and row.dtype.kind == "i"
    if not whole or row.min() < 0 or row.max() >= others or not np.isfinite(cosine[:known]).all():
        raise ValueError(f"{name} is not a side of this comparison")
    return Nearest(row.astype(np.int64), cosine.astype(np.float32))

"""Matching two large decoders takes a minute, so it runs beside the app and its result is kept."""

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy import ndarray

from feature_browser.compare import Correspondence, correspond, of_nearest
from feature_browser.weights import Decoder, Nearest, width
from saelab.analysis.feature_file import map_arrays, write_arrays
from saelab.config import UsageError

COSINES_AT_ONCE = 2**26
"""Up to so many cosines, a fifth of a second's work, nobody waits for."""
DIRECTORY = "comparisons"
FORMAT = "saelab-comparison/1"
KEPT = 8


@dataclass(frozen=True)
class Weights:
    """One side: a weights file as it was at some time, and how to read its decoder."""

    path: Path
    stamp: int
    read: Callable[[], Decoder] = field(compare=False)


@dataclass
class Job:
    """A comparison that runs, or ran, in a thread of its own.

    Attributes:
        share: how much of it is done.
        found, problem: its result, one or the other, once it is done.
    """

    share: float = 0.0
    found: Correspondence | None = None
    problem: str = ""
    thread: threading.Thread | None = None


_jobs: dict[tuple[Weights, Weights], Job] = {}
_lock = threading.Lock()


def matching(this: Weights, other: Weights) -> Correspondence | float:
    """How the latents of two runs correspond, or which share of finding out is done.

    The first call starts the work: small decoders are matched at once, what was found before is
    read from `comparisons/` in the directory of one of the runs, and the rest takes its time.

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
        return job.share
    return job.found if first is this else job.found.turned()


def _started(first: Weights, second: Weights) -> Job:
    job = Job()
    kept = _kept_at(first, second)
    job.found = _read(kept, first, second)
    if job.found is not None:
        return job
    sizes = [width(weights.path)[0] for weights in (first, second)]
    if sizes[0] * sizes[1] <= COSINES_AT_ONCE:
        job.found = correspond(first.read(), second.read())
        return job
    job.thread = threading.Thread(target=_run, args=(job, kept, first, second), daemon=True)
    job.thread.start()
    return job


def _run(job: Job, kept: Path, first: Weights, second: Weights) -> None:
    def report(share: float) -> None:
        job.share = share

    try:
        found = correspond(first.read(), second.read(), report)
    except (UsageError, MemoryError) as error:
        job.problem = str(error) or "There is not enough memory to compare the decoders."
        return
    job.found = found
    arrays = {
        f"{name}/{key}": values
        for name, side in (("first", found.this), ("second", found.other))
        for key, values in (("row", side.nearest.row), ("cosine", side.nearest.cosine))
    }
    try:
        write_arrays(kept, arrays, {"format": FORMAT})
    except OSError:
        # A directory that cannot be written: it is found again by the next server.
        return


def _kept_at(first: Weights, second: Weights) -> Path:
    """Where the result is kept: by what was compared, so that retrained runs are compared anew."""
    facts = [[str(w.path.resolve()), w.stamp, w.path.stat().st_size] for w in (first, second)]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return first.path.parent / DIRECTORY / f"{name}.h5"


def _read(path: Path, first: Weights, second: Weights) -> Correspondence | None:
    """What an earlier comparison found; None if there was none, or its file is not as written."""
    sizes = (width(first.path)[0], width(second.path)[0])
    try:
        arrays, facts = map_arrays(path)
        if facts.get("format") != FORMAT:
            return None
        forth = _side(arrays, "first", *sizes)
        back = _side(arrays, "second", sizes[1], sizes[0])
    except (OSError, KeyError, ValueError):
        return None
    return of_nearest(forth, back)


def _side(arrays: dict[str, ndarray], name: str, n: int, others: int) -> Nearest:
    row, cosine = arrays[f"{name}/row"], arrays[f"{name}/cosine"]
    whole = row.shape == cosine.shape == (n,) and row.dtype.kind == "i"
    if not whole or row.min() < 0 or row.max() >= others or not np.isfinite(cosine).all():
        raise ValueError(f"{name} is not a side of this comparison")
    return Nearest(row.astype(np.int64), cosine.astype(np.float32))

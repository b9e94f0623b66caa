"""Runs that are still being trained, or were left unfinished: how far they are."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from saelab.config import UsageError
from saelab.lock import RUN_LOCK
from saelab.owner import named, read_owner, runs
from saelab.training.run import Run

FEW = 5
"""Lines of the log whose speed predicts the rest."""
QUIET_S = 120.0
"""A log that did not grow for so long is told as quiet."""


@dataclass(frozen=True)
class GrowingRun:
    """A run without weights yet.

    Attributes:
        name: the path below the directory of runs.
        config: the options of its training.
        writer: the process that trains it; empty if none does, as far as this machine can see.
    """

    name: str
    path: Path
    config: dict[str, Any]
    writer: str

    @property
    def finished(self) -> bool:
        """Whether it has its weights now."""
        return (self.path / "weights.safetensors").exists()

    def log(self) -> list[dict[str, Any]]:
        """The logged steps so far; raises UsageError if a line is damaged."""
        lines = Run(self.path).metrics(growing=True)
        return [line for line in lines if _number(line, "tokens") is not None]


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is.

    Attributes:
        share: of the tokens, from 0 to 1; None if the configuration does not say how many.
        seconds_left: at the speed of the last lines; None if unknown.
        quiet_s: seconds since the log grew.
        last: its last line.
    """

    share: float | None
    seconds_left: float | None
    quiet_s: float
    last: dict[str, Any]


def read_growing(path: Path, name: str) -> GrowingRun | None:
    """The run at `path` if it has begun and has no weights yet; None for any other."""
    try:
        run = Run(path)
        run.provenance()
    except UsageError:
        return None
    if run.finished or run.made_with_weights:
        return None
    owner = read_owner(path / RUN_LOCK)
    writer = named(owner) if owner and runs(owner) is not False else ""
    return GrowingRun(name, path, run.options, writer)


def progress(run: GrowingRun, lines: list[dict[str, Any]]) -> TrainingProgress:
    """How far the training of these logged steps is."""
    log = run.path / "metrics.jsonl"
    quiet = max(0.0, time.time() - log.stat().st_mtime) if log.is_file() else 0.0
    last = lines[-1] if lines else {}
    wanted, seen = _number(run.config, "n_tokens"), _number(last, "tokens") or 0.0
    speeds = [s for line in lines[-FEW:] if (s := _number(line, "tokens_per_second"))]
    if not wanted or wanted < 0:
        return TrainingProgress(None, None, quiet, last)
    left = max(0.0, wanted - seen) * len(speeds) / sum(speeds) if speeds else None
    return TrainingProgress(min(1.0, seen / wanted), left, quiet, last)


def events(run: GrowingRun) -> list[tuple[str, str]]:
    """What has happened, the latest first: times (UTC) and sentences."""
    found = [
        (run.path / "config.json", "Training began."),
        (run.path / "metrics.jsonl", "Last logged step."),
    ]
    for path in run.path.glob("checkpoints/step_*.safetensors"):
        step = path.stem.removeprefix("step_").lstrip("0") or "0"
        found.append((path, f"Checkpoint of step {step}: it continues from here if it is killed."))
    kept = run.path.glob("kept/tokens_*/weights.safetensors")
    found += [(path, f"Kept the SAE as it was: {path.parent.name}.") for path in kept]
    times = [(_changed(path), said) for path, said in found]
    return sorted(((_time(at), said) for at, said in times if at), reverse=True)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _number(values: dict[str, Any], name: str) -> float | None:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1 << 62 else None

"""Saved steering experiments: one JSON file each, in RUN/experiments/."""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from feature_browser.pages.steering.experiment import Experiment
from saelab.config import Config, UsageError
from saelab.files import create_file
from saelab.formats.json_file import read_config

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,59}")
MOST, LARGEST = 500, 1 << 20


class Saved(Config):
    """An experiment and its result."""

    format: Literal["saelab-steering-experiment/1"] = "saelab-steering-experiment/1"
    """Version of the file's format."""
    saved: str = Field(max_length=40)
    """Time of saving: ISO 8601, UTC."""
    experiment: Experiment
    """The experiment."""
    plain: str
    """The continuation without steering."""
    steered: str
    """The continuation with steering."""


@dataclass(frozen=True)
class Shelf:
    """The saved experiments of a run, newest first, and why some cannot be read."""

    saved: dict[str, Saved] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def directory(run: Path) -> Path:
    """Directory of a run's experiments."""
    return run / "experiments"


def shelf(run: Path) -> Shelf:
    """All saved experiments; an invalid file is reported and does not affect the others."""
    found: dict[str, Saved] = {}
    problems: list[str] = []
    paths = sorted(directory(run).glob("*.json"))
    for path in paths[:MOST]:
        try:
            found[path.stem] = read(run, path.stem)
        except UsageError as error:
            problems.append(str(error))
    if len(paths) > MOST:
        problems.append(f"{len(paths) - MOST} experiments beyond the first {MOST} are not shown.")
    newest = sorted(found, key=lambda name: found[name].saved, reverse=True)
    return Shelf({name: found[name] for name in newest}, tuple(problems))


def read(run: Path, name: str) -> Saved:
    """A saved experiment.

    Raises:
        UsageError: the name is invalid, or the file is missing, too large or damaged.
    """
    path = directory(run) / f"{_checked(name)}.json"
    if path.is_file() and path.stat().st_size > LARGEST:
        raise UsageError(f"{path} is larger than {LARGEST:,} bytes, so not an experiment.")
    try:
        return read_config(Saved, path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error


def save(run: Path, name: str, experiment: Experiment, texts: tuple[str, str]) -> Path:
    """Write an experiment with its plain and steered text, whole or not at all.

    Raises:
        UsageError: the name is invalid or taken, or the directory cannot be written to.
    """
    path = directory(run) / f"{_checked(name)}.json"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    data = Saved(saved=now, experiment=experiment, plain=texts[0], steered=texts[1]).to_json()
    try:
        if not path.exists():
            create_file(path, data.encode())
            if path.read_text() == data:
                return path
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}; the run's directory must be writable."
        ) from error
    raise UsageError(f"There is an experiment {name!r} already; choose another name.")


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:60]!r} cannot name an experiment; use up to 60 letters, digits, spaces, dots, "
            "dashes and underscores."
        )
    return name

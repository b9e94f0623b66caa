"""The runs below a directory."""

import os
from pathlib import Path
from typing import NamedTuple

from saelab.config import UsageError
from saelab.training.run import Run
from saelab.training.run_paths import CONFIG, WEIGHTS

OWN = {"checkpoints", "evaluation", "circuits", "transport", "explanations", "experiments"}
OWN |= {"features.partial"}
"""Directories of a run that hold no other runs."""
MAX_DEPTH = 16
"""Levels of directories that are searched for runs."""
MAX_DIRECTORIES = 100_000


class FoundRuns(NamedTuple):
    """What `find_runs` found.

    Attributes:
        runs: the finished runs that can be read, sorted by path.
        problems: one sentence for each of the others, and for what was not searched.
    """

    runs: list[Run]
    problems: list[str]


def find_runs(root: Path) -> FoundRuns:
    """Every finished run at or below `root`; unfinished and damaged ones are reported.

    Links to directories are not followed, and a run's own directories are not searched. The search
    ends at `MAX_DEPTH` levels or `MAX_DIRECTORIES` directories.
    """
    found = FoundRuns([], [])
    for path in run_directories(root, found.problems):
        try:
            run = Run(path)
            run.check_finished()
            found.runs.append(run)
        except UsageError as error:
            found.problems.append(str(error))
    return found


def run_directories(root: Path, problems: list[str]) -> list[Path]:
    """The directories at or below `root` that hold a run, sorted; no file is read.

    Weights mark a run, so a run that lost its config.json is found. So does a config.json beside a
    provenance.json; language models have a config.json alone. For what was not searched, one
    sentence each is added to `problems`.
    """
    found: list[Path] = []
    places = [(Path(root), 0)]
    n = 0
    while places:
        path, depth = places.pop()
        n += 1
        if n > MAX_DIRECTORIES:
            problems.append(
                f"{root} holds more than {MAX_DIRECTORIES:,} directories, and not all of them were "
                "searched; name one nearer to the runs."
            )
            break
        try:
            with os.scandir(path) as entries:
                kinds = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        except OSError as error:
            problems.append(f"{path} cannot be read: {error.strerror}.")
            continue
        holds_run = WEIGHTS in kinds or {CONFIG, "provenance.json"} <= kinds.keys()
        if holds_run:
            found.append(path)
        below = [
            path / name
            for name, is_directory in kinds.items()
            if is_directory and not name.startswith(".") and not (holds_run and name in OWN)
        ]
        if depth < MAX_DEPTH:
            places += [(each, depth + 1) for each in below]
        elif below:
            problems.append(f"{path} lies {depth} levels below {root}; deeper ones are left out.")
    return sorted(found)

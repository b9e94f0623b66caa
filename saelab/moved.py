"""Where a recorded file or directory is after it was moved, renamed or copied to another machine.

A run records where its model, text and store were, and their digests. What is not there any more
is looked for beside the run, in the current directory, and in the directories that the environment
variable SAELAB_PATH names. It is found by the end of its old path; whoever reads it compares the
digest.
"""

import os
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "SAELAB_PATH"
PARENTS = 3
"""So many directories above a run count as beside it."""


def beside(path: Path) -> tuple[Path, ...]:
    """The directories around a run."""
    return tuple(path.absolute().parents[:PARENTS])


def places(near: Sequence[Path] = ()) -> tuple[Path, ...]:
    """The directories in which something moved is looked for, in order."""
    named = [Path(part) for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    return tuple(dict.fromkeys([*near, Path.cwd(), *named]))


def now_at(recorded: Path, near: Sequence[Path] = ()) -> Path | None:
    """Where a recorded path is now: as much of its end as possible in one of the `places`.

    None if it is nowhere.
    """
    if recorded.exists():
        return recorded
    ends = [Path(*recorded.parts[i:]) for i in range(recorded.is_absolute(), len(recorded.parts))]
    candidates = (place / end for end in ends for place in places(near))
    return next((path for path in candidates if path.exists()), None)


def remedy(option: str | None = None) -> str:
    """What helps when it is nowhere, as a part of a sentence."""
    first = "" if option is None else f"pass {option}, or "
    return f"{first}copy it beside the run, or name the directory that holds it in {VARIABLE}"

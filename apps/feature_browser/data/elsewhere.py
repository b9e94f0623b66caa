"""What a page shows, as a command and as Python, for the terminal, a script or a notebook."""

import json
import shlex
from dataclasses import dataclass

from feature_browser.data.catalogue import RunCard


@dataclass(frozen=True)
class Elsewhere:
    """The ways to what a page shows; empty where there is none."""

    command: str = ""
    python: str = ""


NOWHERE = Elsewhere()


def command(verb: str, *words: object) -> str:
    """A command of saelab, quoted for the shell."""
    return shlex.join(["saelab", verb, *map(str, words)])


def python(card: RunCard, *lines: str) -> str:
    """Python lines in which RUN stands for the run's path."""
    path = json.dumps(card.path.as_posix())
    return "\n".join(line.replace("RUN", path) for line in lines)

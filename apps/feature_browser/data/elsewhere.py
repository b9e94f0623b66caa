"""What a page shows, as a command and as Python, for the terminal, a script or a notebook."""

import json
import shlex
from dataclasses import dataclass
from pathlib import PurePath
from string import Template

from feature_browser.data.catalogue import RunCard
from saelab.cli.parse import OPTION

SWITCHES = frozenset({"--all", "--chat", "--dose"})
"""Options without a value in the commands of pages."""


@dataclass(frozen=True)
class Elsewhere:
    """The ways to what a page shows; empty where there is none."""

    command: str = ""
    python: str = ""


NOWHERE = Elsewhere()


def command(verb: str, *words: object) -> str:
    """A command of saelab, quoted for the shell.

    A value that begins as an option does is joined to the option before it: --list=--mine.
    """
    said, wants_value = ["saelab", verb], False
    for word in words:
        text = str(word)
        if isinstance(word, PurePath) and text.startswith("-"):
            text = f"./{text}"
        if wants_value and OPTION.fullmatch(text):
            said[-1] += f"={text}"
        else:
            said.append(text)
        wants_value = not wants_value and text.startswith("--") and text not in SWITCHES
    return shlex.join(said)


def python(card: RunCard, *lines: str, **values: object) -> str:
    """Python lines in which $RUN stands for the run's path, and $name for the value `name`.

    Values are put in once, as literals, so that no text of a reader is taken for code.
    """
    literals = {name: _literal(value) for name, value in values.items()}
    return Template("\n".join(lines)).substitute(RUN=_literal(card.path), **literals)


def _literal(value: object) -> str:
    if isinstance(value, PurePath):
        value = value.as_posix()
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)

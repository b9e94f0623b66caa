"""The reference of the command line: each command's own help."""

import os
from collections.abc import Iterator

from saelab.cli import VERBS
from saelab.cli.completion import commands
from saelab.cli.help_text import Command, help_text

WIDTH = "80"
INDEX = "reference/cli/index.md"
HEAD = """\
# The command line

What `saelab VERB --help` prints. [The verbs](../../verbs.md) has them in one table, with the exit
codes.
"""


def place(verb: str) -> str:
    """The page of a verb."""
    return f"reference/cli/{verb}.md"


def pages() -> Iterator[tuple[str, str]]:
    """The names of the pages and their text: one for each verb, and the list of them."""
    links = [f"- [`saelab {verb}`]({verb}.md): {about}" for verb, about in VERBS.items()]
    yield INDEX, "\n".join([HEAD, *links, ""])
    every = dict(commands())
    for verb, about in VERBS.items():
        text = f"# saelab {verb}\n\n{about[0].upper()}{about[1:]}.\n\n"
        for path, command in every.items():
            if path == verb:
                text += _fence(command)
            elif path.split()[0] == verb:
                text += f"\n## saelab {path}\n\n{_fence(command)}"
        yield place(verb), text


def _fence(command: Command) -> str:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    try:
        return f"```text\n{help_text(command)}\n```\n"
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before

"""The text of `--help`: as wide as the terminal, and plain text through a pipe."""

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from saelab.cli.options import Option

COLUMN = 26
"""Column where the explanations of options start."""
WIDEST = 120
_WHOLE_WORDS = {"break_long_words": False, "break_on_hyphens": False}
_KEPT = "\0"
"""A space at which no line is broken."""


@dataclass(frozen=True)
class Command:
    """The help of a verb, or of one of its subcommands.

    Attributes:
        name: the command as typed, e.g. "saelab train topk".
        about: paragraphs; indented lines are examples, and a deeper line continues the one above.
        options: its options.
        choices: its subcommands, each with a sentence.
        choice: the name for the subcommands in the usage line.
        chosen_by: required options that need not be given, by the option that chooses them.
    """

    name: str
    about: str
    options: Sequence[Option] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    choice: str = ""
    chosen_by: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def example(self) -> str:
        """The first example on one line, or else how to ask for help."""
        lines = "\n".join(_paragraphs(self.about)).split("\n")
        found = (line.strip() for line in lines if line.startswith(f"    {self.name}"))
        return next(found, f"{self.name} --help")


def help_text(command: Command) -> str:
    """Usage, purpose, and every option below its heading."""
    width = max(40, min(WIDEST, shutil.get_terminal_size().columns))
    blocks = [_usage(command, width)]
    blocks += [_wrapped(text, width) for text in _paragraphs(command.about)]
    if command.choices:
        column = min(COLUMN, max(map(len, command.choices)) + 4)
        lines = [_entry(name, text, width, column) for name, text in command.choices.items()]
        blocks.append("\n".join([f"{command.choice}:", *lines]))
    # Arguments without a name are given first.
    options = sorted(command.options, key=lambda option: not option.positional)
    for heading in dict.fromkeys(option.heading for option in options):
        own = [_option(option, width) for option in options if option.heading == heading]
        blocks.append("\n".join([f"{heading}:", *own]))
    return "\n\n".join(blocks)


def _usage(command: Command, width: int) -> str:
    needed = [option for option in command.options if option.field.is_required()]
    needed.sort(key=lambda option: not option.positional)
    words = [command.choice, *(_together(_called(option)) for option in needed), "[OPTIONS]"]
    return _filled(" ".join(filter(None, words)), width, f"usage: {command.name} ", " " * 10)


def _paragraphs(text: str) -> Iterator[str]:
    """A docstring's paragraphs as one line each; of a paragraph of examples, each example."""
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if block.startswith("    "):
            yield re.sub(r"\n {5,}", " ", block)
        else:
            yield " ".join(block.split())


def _wrapped(text: str, width: int) -> str:
    if not text.startswith("    "):
        return _filled(text, width)
    return "\n".join(_example(line, width) for line in text.split("\n"))


def _example(text: str, width: int) -> str:
    """A command, broken before its options or long values, so that it can still be pasted."""
    lines: list[str] = []
    for part in re.split(r" (?=--)", text.strip()):
        if lines and len(lines[-1]) + len(part) + 7 <= width:
            lines[-1] += f" {part}"
            continue
        for piece in textwrap.wrap(part, width - 7, **_WHOLE_WORDS) if '"' not in part else [part]:
            lines.append(f"{'  ' if lines else ''}{piece}")
    return "\n".join(f"  {line}" for line in " \\\n".join(lines).split("\n"))


def _option(option: Option, width: int) -> str:
    text = " ".join((option.field.description or "").split())
    return _entry(_called(option), f"{text} {_together(_default(option))}".strip(), width)


def _called(option: Option) -> str:
    """An option with its value."""
    if option.is_switch:
        return ", ".join(option.names)
    value = f"{option.metavar} ..." if option.is_many else option.metavar
    return value if option.positional else f"{option.name} {value}"


def _default(option: Option) -> str:
    value = option.field.default
    if option.field.is_required():
        return "(required)"
    if option.is_switch:
        return f"(default: {option.name})" if value else ""
    if value is None or value in ((), ""):
        return ""
    values = value if option.is_many else [value]
    words = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    return f"(default: {' '.join(words)})"


def _entry(name: str, text: str, width: int, column: int = COLUMN) -> str:
    """A name with its explanation beside it, or below it if the name is long."""
    head = f"  {name}"
    if not text:
        return head
    beside = len(head) + 2 <= column
    lines = _filled(text, width, head.ljust(column) if beside else " " * column, " " * column)
    return lines if beside else f"{head}\n{lines}"


def _together(words: str) -> str:
    """Words between which no line is broken."""
    return words.replace(" ", _KEPT) if len(words) < COLUMN else words


def _filled(text: str, width: int, first: str = "", rest: str = "") -> str:
    lines = textwrap.fill(text, width, initial_indent=first, subsequent_indent=rest, **_WHOLE_WORDS)
    return lines.replace(_KEPT, " ")

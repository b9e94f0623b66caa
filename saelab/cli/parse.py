"""Command lines parsed into configurations, or refused in one sentence with the nearest name."""

import inspect
import re
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from saelab.cli.help_text import Command, help_text
from saelab.cli.options import Option, nearest, options_of
from saelab.config import UsageError, first_problem

Result = TypeVar("Result", bound=BaseModel)
OPTION = re.compile(r"--|--?[A-Za-z][\w-]*(=.*)?", re.DOTALL)
"""Matches words that name an option; -4 and "- a line of a list" are values."""
HELP = ("-h", "--help")


class HelpAsked(SystemExit):
    """Help was asked for, and printed."""

    def __init__(self, command: Command) -> None:
        super().__init__(0)
        self.command = command


def parse(cls: type[Result], verb: str, arguments: list[str]) -> Result:
    """The configuration that the arguments describe; its docstrings are the help.

    Raises:
        UsageError: the arguments are wrong; the message starts with what was probably meant.
        HelpAsked: help was asked for, and printed.
    """
    about = inspect.cleandoc(cls.__doc__ or "")
    command = Command(f"saelab {verb}", about, options_of(cls))
    values = read(command, arguments)
    try:
        return cls(**values)
    except ValidationError as error:
        raise UsageError(f"{first_problem(error)}.") from None


def choose(command: Command, arguments: list[str]) -> str:
    """The first argument, which must be one of the command's choices.

    Raises:
        UsageError: it is none of them.
        HelpAsked: help was asked for, and printed.
    """
    word = arguments[0] if arguments else ""
    if word in command.choices:
        return word
    if word in HELP:
        print(help_text(command))
        raise HelpAsked(command)
    *most, last = command.choices
    there = f"choose from {', '.join(most)} and {last}."
    if not word or OPTION.fullmatch(word):
        raise UsageError(f"{command.choice} comes first, as in `{command.example}`; {there}")
    close = nearest(word, command.choices)
    question = f"did you mean {close}? Else {there}" if close else there
    raise UsageError(f"{word!r} is no {command.choice} of `{command.name}`; {question}")


def read(command: Command, arguments: list[str]) -> dict[str, object]:
    """The values of the given options, by the names of their fields.

    Raises:
        UsageError: the arguments are wrong; the message starts with what was probably meant.
        HelpAsked: help was asked for, and printed.
    """
    words = _sorted(command, arguments)
    problems = list(filter(None, (words.unknown_names(command), words.too_many(command))))
    values: dict[str, object] = dict(words.switches)
    for option in command.options:
        if option.name in words.given:
            try:
                values[option.key] = option.read(words.given[option.name])
            except UsageError as error:
                problems.append(str(error))
    if missing := words.missing(command):
        verb = "is" if len(missing) == 1 else "are"
        problems.append(f"{_listed(missing)} {verb} missing; an example: `{command.example}`.")
    if problems:
        raise UsageError(" ".join(problems))
    return values


@dataclass
class _Words:
    """A command line's words, grouped by option."""

    given: dict[str, list[str]] = field(default_factory=dict)
    switches: dict[str, bool] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    """Unknown names, each with what was probably meant."""
    rest: list[str] = field(default_factory=list)

    def take(self, option: Option, name: str, values: list[str]) -> None:
        """Record an option, under one of its names, with its values."""
        if option.is_switch:
            if values:
                raise UsageError(f"{name} takes no value; leave out ={values[0]}.")
            self.switches[option.key] = name == option.name
        elif not values:
            raise UsageError(f"{name} needs a value: {option.allowed}.")
        else:
            # An option of several values may be repeated; of any other option the last value
            # counts.
            self.given[name] = [*self.given.get(name, []), *values]

    def unknown_names(self, command: Command) -> str:
        """What was probably meant by the unknown names."""
        if not self.unknown:
            return ""
        names = list(self.unknown)
        what = "is no option" if len(names) == 1 else "are no options"
        meant = list(filter(None, self.unknown.values()))
        there = f"`{command.name} --help` lists them."
        remedy = f"did you mean {_listed(meant)}?" if meant else there
        return f"{_listed(names)} {what} of `{command.name}`; {remedy}"

    def too_many(self, command: Command) -> str:
        """The words that belong to no option."""
        if not self.rest or self.unknown:
            return ""
        close = _meant(self.rest[0].partition("=")[0], command)
        remedy = f"did you mean {close}?" if close else "quote a value that has spaces."
        return f"{self.rest[0]!r} belongs to no option of `{command.name}`; {remedy}"

    def missing(self, command: Command) -> list[str]:
        """The required options that were not given, not even by a similar name."""
        there = {*self.given, *self.unknown.values()}
        there |= {name for given in self.given for name in command.chosen_by.get(given, ())}
        needed = [option.name for option in command.options if option.field.is_required()]
        return [name for name in needed if name not in there]


def _sorted(command: Command, arguments: list[str]) -> _Words:
    named = {name: option for option in command.options for name in option.names}
    found, words = _Words(), list(arguments)
    while words:
        word = words.pop(0)
        if word in HELP:
            print(help_text(command))
            raise HelpAsked(command)
        if word == "--":
            found.rest, words = found.rest + words, []
        elif OPTION.fullmatch(word):
            name, equals, value = word.partition("=")
            name = name.replace("_", "-")
            meant = name if name in named else _meant(name, command)
            option = named.get(meant)
            taken = [value] if equals else _taken(words, option)
            if option is None or name != meant:
                found.unknown[name] = meant
            else:
                found.take(option, name, taken)
        else:
            found.rest.append(word)
    for option in command.options:
        if option.positional and found.rest:
            n = len(found.rest) if option.is_many else 1
            found.given[option.name], found.rest = found.rest[:n], found.rest[n:]
    return found


def _meant(name: str, command: Command) -> str:
    """The option with a similar name, or the first whose explanation has its words; else None."""
    close = nearest(name, [name for option in command.options for name in option.names])
    words = name.strip("-").replace("-", " ").lower()
    about = (o.name for o in command.options if words in (o.field.description or "").lower())
    return close or next(about, "")


def _taken(words: list[str], option: Option | None) -> list[str]:
    """Take the option's values from `words`; a switch has none."""
    most = 0 if option is None or option.is_switch else len(words) if option.is_many else 1
    taken: list[str] = []
    while words and len(taken) < most and not OPTION.fullmatch(words[0]):
        taken.append(words.pop(0))
    return taken


def _listed(names: list[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last

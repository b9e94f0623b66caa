"""The options of a verb, derived from the fields of its configuration."""

import difflib
import math
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from saelab.config import Heading, UsageError

NONE = type(None)
BOUNDS = {
    "gt": "greater than",
    "ge": "from",
    "lt": "less than",
    "le": "up to",
    "multiple_of": "that is a multiple of",
}
"""Pydantic's limits, in words."""
_UNREADABLE = object()


@dataclass(frozen=True)
class Metavar:
    """In a field's annotation: the placeholder for its value in help."""

    text: str


@dataclass(frozen=True)
class Positional:
    """In a field's annotation: the option is given without a name, and called `text`."""

    text: str


@dataclass(frozen=True)
class Option:
    """One option, or one argument without a name.

    Attributes:
        key: name of the option's field.
        field: the field.
        heading: the heading above it in help.
    """

    key: str
    field: FieldInfo
    heading: str

    @property
    def positional(self) -> bool:
        """Whether it is given without a name."""
        return any(isinstance(mark, Positional) for mark in self.field.metadata)

    @property
    def name(self) -> str:
        """The name that the user sees: --n-tokens, or RUN."""
        # If Python or pydantic uses the name already, the field ends with an underscore.
        return self.metavar if self.positional else f"--{self.key.strip('_').replace('_', '-')}"

    @property
    def names(self) -> list[str]:
        """All names that may be typed for it; for a switch that is on, also its `--no-` form."""
        if self.positional:
            return []
        off = [f"--no-{self.name[2:]}"] if self.is_switch and self.field.default else []
        return [self.name, *off]

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return self.field.annotation is bool

    @property
    def is_many(self) -> bool:
        """Whether it takes several values."""
        return get_origin(self.field.annotation) is tuple

    @property
    def kinds(self) -> list[Any]:
        """The kinds of values: types, literals, and None."""
        annotation = self.field.annotation
        return list(_members(get_args(annotation)[0] if self.is_many else annotation))

    @property
    def choices(self) -> list[str]:
        """The words allowed as values."""
        return [w for kind in self.kinds if get_origin(kind) is Literal for w in get_args(kind)]

    @property
    def metavar(self) -> str:
        """The placeholder for its value in help."""
        marks = [
            mark.text for mark in self.field.metadata if isinstance(mark, Metavar | Positional)
        ]
        shown = marks or [_metavar(kind, self.key) for kind in self._shown()]
        return " or ".join(shown)

    @property
    def allowed(self) -> str:
        """The allowed values, in words."""
        return ", or ".join(_in_words(kind, self.field.metadata) for kind in self._shown())

    def _shown(self) -> list[Any]:
        """The kinds to show: None is hidden if leaving out the option means the same."""
        kinds = self.kinds
        if self.field.default is None:
            kinds = [kind for kind in kinds if kind is not NONE]
        return [kind for kind in kinds if kind is not int or float not in kinds]

    def read(self, words: list[str]) -> object:
        """The value of these words of the command line.

        Raises:
            UsageError: the value is not allowed.
        """
        values = tuple(self._read(word) for word in (words if self.is_many else words[-1:]))
        value = values if self.is_many else values[0]
        # pyrefly: ignore[not-a-type]
        annotation: Any = Annotated[self.field.annotation, self.field]
        try:
            return TypeAdapter(annotation).validate_python(value)
        except ValidationError:
            raise self._refused(" ".join(words if self.is_many else words[-1:])) from None

    def _read(self, word: str) -> object:
        for kind in self.kinds:
            if (value := _read(word, kind)) is not _UNREADABLE:
                return value
        raise self._refused(word)

    def _refused(self, given: str) -> UsageError:
        if not given:
            without = "" if self.field.is_required() else ", or leave it out"
            return UsageError(f"{self.name} is empty; give {self.allowed}{without}.")
        close = nearest(given, self.choices)
        question = f"did you mean {close}? It takes" if close else "give"
        return UsageError(f"{self.name} {given!r} is not possible; {question} {self.allowed}.")


def options_of(cls: type[BaseModel]) -> list[Option]:
    """The options of a configuration; an option belongs to the last `Heading` before it."""
    found, heading = [], "Options"
    for key, field in cls.model_fields.items():
        heading = next((m.title for m in field.metadata if isinstance(m, Heading)), heading)
        option = Option(key, field, heading)
        found.append(replace(option, heading="Arguments") if option.positional else option)
    return found


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The word in `words` that was probably meant, or None."""
    bare = {w.strip("-"): w for w in words}
    given = word.strip("-").lower()
    within = [w for w in bare if len(given) > 1 and (w.startswith(given) or given in w.split("-"))]
    # Two letters in each other's place may leave little in common: oredred, ordered.
    close = difflib.get_close_matches(given, bare, 1, cutoff=0.55) or within
    return bare[close[0]] if close else None


def _members(annotation: Any) -> Iterator[Any]:  # noqa: ANN401 - any annotation
    if get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _members(part)
    else:
        yield annotation


def _read(word: str, kind: Any) -> object:  # noqa: ANN401 - any annotation
    if get_origin(kind) is Annotated:
        return _read(word, get_args(kind)[0])
    if get_origin(kind) is Literal:
        return word if word in get_args(kind) else _UNREADABLE
    if kind in (Path, str) and not word:
        # An unset variable in a shell; Path("") would be the current directory, and an empty name
        # is easily taken for none.
        return _UNREADABLE
    if kind is NONE:
        return None if word.lower() == "none" else _UNREADABLE
    try:
        value = kind(word)
    except ValueError:
        return _UNREADABLE
    return _UNREADABLE if isinstance(value, float) and not math.isfinite(value) else value


def _metavar(kind: Any, key: str) -> str:  # noqa: ANN401 - any annotation
    if get_origin(kind) is Annotated:
        return _metavar(get_args(kind)[0], key)
    if get_origin(kind) is Literal:
        return f"{{{','.join(get_args(kind))}}}"
    words = {int: "N", float: "NUMBER", Path: "PATH", NONE: "none"}
    return words.get(kind) or key.strip("_").rpartition("_")[2].removesuffix("s").upper()


def _in_words(kind: Any, limits: Iterable[object]) -> str:  # noqa: ANN401 - any annotation
    if get_origin(kind) is Annotated:
        kind, *own = get_args(kind)
        return _in_words(kind, [*own, *limits])
    if get_origin(kind) is Literal:
        *most, last = get_args(kind)
        return f"{', '.join(most)} or {last}" if most else last
    plain = {int: "a whole number", float: "a number", Path: "a path", NONE: "none"}
    if kind not in (int, float):
        return plain.get(kind, "text")
    found = ((word, getattr(m, b)) for b, word in BOUNDS.items() for m in limits if hasattr(m, b))
    bounds = [
        # Short numbers, such as a port's, are plain.
        f"{word} {limit:,}" if isinstance(limit, int) and limit >= 10**6 else f"{word} {limit:g}"
        for word, limit in found
    ]
    return " ".join([plain[kind], *bounds])

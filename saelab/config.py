"""The base of every configuration: frozen, closed, and exact through JSON."""

import hashlib
import json
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError


class Config(BaseModel):
    """A frozen record whose unknown keys are errors, so that a misspelt option is never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def to_json(self) -> str:
        """Indented JSON with every field, defaults included."""
        return self.model_dump_json(indent=2) + "\n"

    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON: equal digests mean equal configurations."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class Heading:
    """In a field's annotation: in `--help` it and the fields after it stand below `title`.

    A title that returns further down continues the part of that name.
    """

    title: str


class UsageError(ValueError):
    """A mistake of the caller that one sentence explains; the CLI prints it and exits with 2."""

    exit_code = 2


def shortened(value: object) -> str:
    """A value as a sentence repeats it; a long one is cut."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def first_problem(error: ValidationError) -> str:
    """Where the first thing is that does not fit, and why."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"]) or "the file"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}"

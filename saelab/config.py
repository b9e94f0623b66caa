"""The base of every configuration: frozen, without unknown keys, and exact through JSON."""

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
    """In a field's annotation: in `--help`, this field and those after it are below `title`.

    A title that occurs again continues its earlier section.
    """

    title: str


class UsageError(ValueError):
    """A mistake of the caller that one sentence explains; the CLI prints it and exits with 2."""

    exit_code = 2


MAX_D_SAE = 2**40
"""Far beyond any memory; the bytes of more latents would overflow 64-bit sizes."""


def shortened(value: object) -> str:
    """A value as a sentence shows it; a long one is cut."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def first_problem(error: ValidationError) -> str:
    """The place and the reason of the first invalid value."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"]) or "the file"
    reason = problem["msg"].removeprefix("Value error, ")
    for limit in problem.get("ctx", {}).values():
        if isinstance(limit, int) and limit >= 10**6:
            reason = reason.replace(f"{limit}", f"{limit:,}")
    return f"{where}: {reason}"

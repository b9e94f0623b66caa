"""The base of every configuration: frozen, closed, and exact through JSON."""

import hashlib
import json
from pathlib import Path
from typing import TypeVar

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


C = TypeVar("C", bound=Config)


class UsageError(ValueError):
    """A mistake of the caller that one sentence explains; the CLI prints it and exits with 2."""


def read_config(cls: type[C], path: Path) -> C:
    """Read a configuration written by `Config.to_json`.

    Raises:
        UsageError: the file is missing, is not JSON, or does not fit `cls`.
    """
    try:
        return cls.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist.") from None
    except ValidationError as error:
        raise UsageError(f"{path} is not a valid {cls.__name__}: {first_problem(error)}.") from None


def first_problem(error: ValidationError) -> str:
    """Where the first thing is that does not fit, and why."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"]) or "the file"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}"

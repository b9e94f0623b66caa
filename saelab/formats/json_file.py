"""Untrusted JSON, and JSON objects that carry their own checksum.

A sealed object has the field `sha256`, the digest of all other fields as JSON with sorted keys and
without spaces. Older objects lack the field and are read unchecked.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from saelab.config import Config, UsageError, first_problem
from saelab.files import atomic_write_json
from saelab.formats.regular import read_regular, utf8

MAX_BYTES = 64 * 2**20
"""Largest size of a file of figures; those of 100,000 latents take some megabytes."""
MAX_CONFIG_BYTES = 4 * 2**20
"""Largest size of a configuration; usual ones take kilobytes."""
MAX_VALUES = 2**22
"""Largest number of numbers, texts, lists and objects in a file: a million latents have two numbers
each. One takes about 100 bytes of memory."""
MAX_DEPTH = 64
SEAL = "sha256"
_MOST_SHOWN = 160

C = TypeVar("C", bound=Config)


def parse_json(raw: bytes, where: Path | str, *, max_values: int = MAX_VALUES) -> Any:  # noqa: ANN401
    """The JSON value in `raw`, which comes from the file `where`.

    Raises:
        UsageError: it is not UTF-8 or not JSON, or it has too many or too deeply nested values, a
            duplicate key, NaN, an infinite number, or an integer of more than 64 bits.
    """
    text = utf8(raw, where)
    try:
        _check_size(raw, max_values)
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_constant,
        )
    except (ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [""])[0][:_MOST_SHOWN].rstrip(". ")
        raise UsageError(f"{where} is not whole JSON: {reason}.") from None


def read_json(path: Path, *, most: int = MAX_BYTES, max_values: int = MAX_VALUES) -> Any:  # noqa: ANN401
    """The JSON value in the file at `path` of at most `most` bytes.

    Raises:
        UsageError: as for `read_regular` and `parse_json`.
    """
    return parse_json(read_regular(path, most=most), path, max_values=max_values)


def read_object(
    path: Path, *, most: int = MAX_BYTES, max_values: int = MAX_VALUES
) -> dict[str, Any]:
    """The JSON object in the file at `path`, unchecked.

    Raises:
        UsageError: as for `read_json`, or the value is not an object.
    """
    values = read_json(path, most=most, max_values=max_values)
    if not isinstance(values, dict):
        kind = "null" if values is None else f"a {type(values).__name__}"
        raise UsageError(f"{path} is not a JSON object: it holds {kind}.")
    return values


def read_sealed_json(
    path: Path, *, most: int = MAX_BYTES, max_values: int = MAX_VALUES
) -> dict[str, Any]:
    """The JSON object in the file at `path` without its seal, which is checked if present.

    Raises:
        UsageError: as for `read_object`, or it does not match its seal.
    """
    values = read_object(path, most=most, max_values=max_values)
    seal = values.pop(SEAL, None)
    if seal is not None and seal != canonical_digest(values):
        raise UsageError(
            f"{path} was altered: its values do not match its {SEAL}; restore it, or delete that "
            "line if the change was meant."
        )
    return values


def write_sealed_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write `values` with their seal as indented JSON, whole or not at all; NaN is refused."""
    atomic_write_json(path, sealed(values))


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with their seal as the last field."""
    # Keys are texts when read again, and the digest sorts them as texts.
    plain = json.loads(json.dumps(values, allow_nan=False))
    return {**values, SEAL: canonical_digest(plain)}


def canonical_digest(value: object) -> str:
    """sha256 (hex) of a JSON value with sorted keys and no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_config(cls: type[C], path: Path) -> C:
    """Read a configuration written by `Config.to_json`, sealed or not.

    Raises:
        UsageError: the file is missing, is not JSON, was altered, or does not fit `cls`.
    """
    values = read_sealed_json(path, most=MAX_CONFIG_BYTES)
    try:
        return cls.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise UsageError(f"{path} is not a valid {cls.__name__}: {first_problem(error)}.") from None


def _check_size(raw: bytes, max_values: int) -> None:
    """Limit the number of values before parsing allocates them."""
    if raw.count(b'"') > 4 * max_values:
        raise ValueError(f"it holds more than {2 * max_values:,} texts")
    # Splitting at quotation marks, every second part is outside of strings.
    outside = b"".join(raw.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    if sum(outside.count(mark) for mark in (b",", b"[", b"{")) > max_values:
        raise ValueError(f"it holds more than {max_values:,} values")
    others = bytes(set(range(256)) - set(b"[]{}"))
    steps = (1 if bracket in b"[{" else -1 for bracket in outside.translate(None, others))
    if max(accumulate(steps), default=0) > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:60]!r} occurs twice")
    return values


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**64:
        raise ValueError(f"the integer {text[:20]}... has more than 64 bits")
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is infinite")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"it holds {text}, which is no number in JSON")

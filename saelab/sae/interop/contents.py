"""Entries of JSON objects and tensors from foreign files, checked when they are read."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from saelab.config import UsageError
from saelab.sae.affine import HALVES

LARGEST = 2**40
"""Larger widths, k or layers are refused."""


@dataclass(frozen=True)
class Record:
    """A JSON object from an untrusted file; each entry's type is checked where it is read.

    An absent entry equals null. Every method raises UsageError for another type.
    """

    path: Path
    values: dict[str, Any]

    def record(self, key: str) -> "Record":
        """The object at `key`; empty if there is none."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return Record(self.path, value or {})

    def text(self, key: str) -> str | None:
        """The string at `key`."""
        value = self.values.get(key)
        if not isinstance(value, str | None):
            raise self._wrong(key, "a string")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """The truth value at `key`."""
        value = self.values.get(key)
        if not isinstance(value, bool | None):
            raise self._wrong(key, "true or false")
        return default if value is None else value

    def integer(self, key: str) -> int | None:
        """The whole number >= 0 at `key`."""
        value = self.values.get(key)
        if value is not None and not _is_count(value):
            raise self._wrong(key, "a whole number")
        return value

    def integers(self, key: str) -> tuple[int, ...] | None:
        """The list of whole numbers >= 0 at `key`."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(_is_count(entry) for entry in value):
            raise self._wrong(key, "a list of whole numbers")
        return tuple(value)

    def number(self, key: str) -> float | int | None:
        """The finite number at `key`."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number")
        if abs(value) > LARGEST or not math.isfinite(value):
            raise self._wrong(key, "a number of moderate size")
        return value

    def _wrong(self, key: str, wanted: str) -> UsageError:
        found = repr(self.values[key])
        shown = found if len(found) <= 60 else f"{found[:57]}..."
        return UsageError(f"{self.path}: {key} is {shown}, but it must be {wanted}.")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


@dataclass(frozen=True)
class NamedTensors:
    """Named tensors from an untrusted file; every method raises UsageError for a missing one.

    Attributes:
        path: the file they were read from.
        tensors: by name, as stored.
    """

    path: Path
    tensors: dict[str, Tensor]

    def check_names(self, needed: Iterable[str], optional: Iterable[str] = ()) -> None:
        """Refuse a file that lacks a needed tensor, or that has an unknown one."""
        missing = sorted(set(needed) - set(self.tensors))
        if missing:
            raise UsageError(f"{self.path} lacks {', '.join(missing)}, so the SAE is not whole.")
        unknown = sorted(set(self.tensors) - set(needed) - set(optional))
        if unknown:
            raise UsageError(
                f"{self.path} holds {', '.join(map(repr, unknown))[:120]}, "
                "which this kind of SAE has no place for."
            )

    def matrix(self, name: str) -> Float[Tensor, "rows columns"]:
        """The matrix `name`: as stored if it has 16 bits, else as float32."""
        return self._floats(name, n_axes=2)

    def vector(self, name: str, length: int | None = None) -> Float[Tensor, " n"]:
        """The vector `name` as float32; it must have the given length, if one is given."""
        vector = self._floats(name, n_axes=1).float()
        if length is not None and len(vector) != length:
            raise UsageError(
                f"{self.path}: {name} has {len(vector)} entries, but there are {length} latents."
            )
        return vector

    def scalar(self, name: str) -> float:
        """The single number `name`; a tensor of any shape with one element."""
        tensor = self.tensors[name]
        if tensor.numel() != 1 or tensor.dtype.is_complex:
            raise UsageError(
                f"{self.path}: {name} has shape {list(tensor.shape)}, but one number is needed."
            )
        return float(tensor.reshape(()).double())

    def scalar_or(self, name: str, default: float) -> float:
        """The single number `name`, or `default` where there is no such tensor."""
        return self.scalar(name) if name in self.tensors else default

    def integers(self, name: str) -> tuple[int, ...]:
        """The whole numbers `name`: a vector, or a single number."""
        tensor = self.tensors[name]
        if tensor.ndim > 1 or tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            raise UsageError(
                f"{self.path}: {name} is {tensor.dtype} of shape {list(tensor.shape)}, "
                "but whole numbers are needed."
            )
        return tuple(int(value) for value in tensor.reshape(-1))

    def _floats(self, name: str, n_axes: int) -> Tensor:
        tensor = self.tensors[name]
        if tensor.ndim != n_axes or not tensor.dtype.is_floating_point:
            raise UsageError(
                f"{self.path}: {name} is {tensor.dtype} of shape {list(tensor.shape)}, "
                f"but floating-point numbers with {n_axes} axes are needed."
            )
        tensor = tensor.detach()
        return tensor if tensor.dtype in HALVES else tensor.float()

"""Rows of the table of claims, as `saelab claims` writes them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saelab.claims.outcome import Estimate, Outcome
from saelab.evaluation.measurement import checked
from saelab.formats.json_file import read_object

SHIPPED = Path(__file__).with_name("measured.json")
"""The outcomes that docs/claims.md shows; `make claims` writes them."""


@dataclass(frozen=True)
class Measured:
    """A claim with its outcome.

    Attributes:
        on: the model and the data.
        device: its type: cpu, cuda.
        seconds: wall-clock time.
        cpu_seconds: processor time, of all threads.
        digest: of what the outcome depends on: settings, code, versions.
    """

    name: str
    paper: str
    says: str
    figure: str
    on: str
    verdict: str
    why: str
    outcome: Outcome
    n_seeds: int
    device: str
    seconds: float
    cpu_seconds: float
    digest: str

    def values(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Failed:
    """A claim whose measurement raised an error."""

    name: str
    error: str


def read_rows(path: Path) -> list[Measured]:
    """The rows of a file that `saelab claims` wrote; none if there is no file.

    Raises:
        UsageError: the file is damaged.
    """
    if not path.is_file():
        return []
    return checked(list[Measured], read_object(path).get("claims"), str(path))


def read_row(path: Path) -> Measured:
    """One claim's row in a file of its own.

    Raises:
        UsageError: the file is damaged.
    """
    return checked(Measured, read_object(path), str(path))


COLUMNS = ("paper", "claim", "the paper's figure", "ours", "verdict", "s")


def cells(row: Measured) -> tuple[str, ...]:
    """The row's cells of the printed table."""
    name, figure = next(iter(row.outcome.figures.items()))
    ours = f"{name}: {figure.text()}" + _controls(row.outcome.controls)
    missing = [part for part, held in row.outcome.holds.items() if not held]
    verdict = row.verdict + (f" (not shown: {'; '.join(missing)})" if missing else "")
    return row.paper, f"{row.says} ({row.on})", row.figure, ours, verdict, f"{row.seconds:.0f}"


def _controls(controls: Mapping[str, Estimate]) -> str:
    shown = [f"{name} {figure.text()}" for name, figure in controls.items()]
    return f"; {', '.join(shown)}" if shown else ""


def in_order(rows: Sequence[Measured], names: Sequence[str]) -> list[Measured]:
    """The rows in the order of `names`, others last."""
    place = {name: i for i, name in enumerate(names)}
    return sorted(rows, key=lambda row: place.get(row.name, len(place)))

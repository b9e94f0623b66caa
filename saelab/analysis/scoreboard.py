"""Runs beside each other: every number that their evaluations hold, with intervals.

A figure is named by its file and its place there, e.g. `downstream.ce_recovered`. Of a list of
results (one for each feature, task, letter ...) each number is averaged, with the 95 % bootstrap
interval over its entries. Where a result states its own interval (`NAME_interval`, `NAME_ci`, or
`low` and `high` beside it), that is taken. Of tasks there are the figures that papers report, what
each is to be read with (in brackets), and what all of a kind took: `task_tpp.topics`,
`task_tpp.topics (probes)`, `task_tpp.seconds`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from saelab import drawing
from saelab.analysis.explain.judging import interval
from saelab.config import UsageError
from saelab.evaluation.measurement import measurements
from saelab.evaluation.tasks.summary import summed
from saelab.formats.csv_file import csv_text
from saelab.formats.json_file import read_sealed_json

L0 = "reconstruction.l0"
PREFERRED = (L0, "reconstruction.fvu", "downstream.ce_recovered", "downstream.kl", "recovery.f1")
ABBREVIATED = ("tpp", "scr", "ravel")
"""Tasks whose names are abbreviations."""
LESS_IS_BETTER = (
    *("fvu", "mse", "kl", "ce_plain", "ce_spliced", "ce_zero", "dead", "dense", "absor", "error"),
    *("bits", "duplicates", "opposites", "loss", "perplexity", "collinear", "l0"),
    *("seconds", "bytes"),
)
"""Beginnings of the names of figures of which less is better."""
ABOUT = {"made", "sha256", "options", "seconds", "provenance", "skipped", "files"}
"""What is no result, but says how it was made."""
KNOWN = {
    L0: "L0",
    "reconstruction.fvu": "FVU",
    "downstream.ce_recovered": "CE recovered",
    "downstream.kl": "KL",
    "recovery.f1": "F1 of known features",
    "reconstruction.dead": "silent on held-out text",
}
"""The names that everybody uses."""
DEEPEST = 4
MOST_FIGURES = 400
MOST_ENTRIES = 2000
LARGEST = 1e300
INTERVALS = ("_interval", "_ci", "_ci95")


@dataclass(frozen=True)
class FigureEstimate:
    """A figure of a run.

    Attributes:
        low, high: its 95 % interval; None if it has none.
        n: the number of entries that it is the mean of; 1 if it is none.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 1


@dataclass(frozen=True)
class Scoreboard:
    """The figures of several runs, by their names.

    Attributes:
        problems: what could not be read, and why.
    """

    runs: Mapping[str, Mapping[str, FigureEstimate]]
    problems: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The names of all figures: those of PREFERRED first, then by name."""
        every = {name for figures in self.runs.values() for name in figures}
        return [*(n for n in PREFERRED if n in every), *sorted(every - {*PREFERRED})]

    def column(self, name: str) -> dict[str, FigureEstimate]:
        """A figure of the runs that have it."""
        return {run: figures[name] for run, figures in self.runs.items() if name in figures}

    def tradeoff(self, name: str, *, less: bool | None = None) -> "Tradeoff":
        """The figure against L0, for the runs that have both."""
        both = {run: (f[L0], f[name]) for run, f in self.runs.items() if L0 in f and name in f}
        return Tradeoff(name, both, less_is_better(name) if less is None else less)

    def csv(self, names: Sequence[str] | None = None) -> str:
        """A line for each run; a figure with an interval has three columns."""
        shown = self.names if names is None else names
        bounded = {n for n in shown if any(e.low is not None for e in self.column(n).values())}
        heads = [h for n in shown for h in ((n, f"{n}.low", f"{n}.high") if n in bounded else (n,))]
        rows: list[list[float | str | None]] = [["run", *heads]]
        for run, figures in self.runs.items():
            cells: list[float | str | None] = []
            for name in shown:
                one = figures.get(name)
                cells.append("" if one is None else one.value)
                if name in bounded:
                    cells += ["", ""] if one is None else [one.low, one.high]
            rows.append([run, *cells])
        return csv_text(rows)


@dataclass(frozen=True)
class Tradeoff:
    """A figure against L0.

    Attributes:
        points: L0 and the figure of each run.
        less: whether less of the figure is better; less L0 always is.
    """

    name: str
    points: Mapping[str, tuple[FigureEstimate, FigureEstimate]]
    less: bool

    @property
    def front(self) -> list[str]:
        """The runs that no other run beats in one of the two without losing in the other, by L0."""
        sign = 1.0 if self.less else -1.0
        ranked = sorted(self.points, key=lambda run: self._rank(run, sign))
        found: list[str] = []
        best = math.inf
        for run in ranked:
            if (cost := self._rank(run, sign)[1]) < best:
                found.append(run)
                best = cost
        return found

    def _rank(self, run: str, sign: float) -> tuple[float, float]:
        l0, figure = self.points[run]
        return l0.value, sign * figure.value

    figure = drawing.figure


def in_words(name: str) -> str:
    """A figure's name on a heading or an axis."""
    file, _, rest = name.partition(".")
    kind = file.removeprefix("task_")
    kind = kind.upper() if kind in ABBREVIATED else kind
    return KNOWN.get(name, f"{kind}: {rest}".replace("_", " ") if rest else kind)


def less_is_better(name: str) -> bool:
    """Whether less of the figure is better, as far as its name says."""
    return name.rpartition(".")[2].startswith(LESS_IS_BETTER)


def scoreboard(runs: Mapping[str, Path]) -> Scoreboard:
    """The figures of runs, by the names to be shown. Damaged results are left out and told."""
    problems: list[str] = []
    found = {name: _figures_of(path, problems) for name, path in runs.items()}
    return Scoreboard(found, problems)


def _figures_of(path: Path, problems: list[str]) -> dict[str, FigureEstimate]:
    figures: dict[str, FigureEstimate] = {}
    for file in sorted((path / "evaluation").glob("*.json")):
        if file.stem in ABOUT | {"summary"}:
            continue
        try:
            found = list(_in_file(file))
        except UsageError as error:
            problems.append(str(error))
            continue
        for name, one in found:
            if len(figures) < MOST_FIGURES:
                figures[f"{file.stem}{name}"] = one
    return figures


def _in_file(file: Path) -> Iterator[tuple[str, FigureEstimate]]:
    """The figures of a file, by their place in it (beginning with a dot)."""
    values = read_sealed_json(file)
    known = measurements().get(file.stem)
    if known is None or known.suite != "tasks":
        yield from _estimates(values, 0)
        return
    found = list(known.read(values, str(file)).headlines())
    for each in found:
        # The app's addresses separate names by commas.
        name = f".{each.name or each.data}".replace(",", " ")
        if each.value is not None:
            yield name, FigureEstimate(each.value.value, each.value.low, each.value.high)
        beside, value = each.beside
        yield f"{name} ({beside})".replace(",", ""), FigureEstimate(value)
    took = summed([each.cost for each in found if each.cost is not None])
    yield ".seconds", FigureEstimate(took.seconds)
    yield ".bytes", FigureEstimate(float(took.memory))


def _estimates(values: object, depth: int) -> Iterator[tuple[str, FigureEstimate]]:
    """The figures of a JSON value, by their place below it (beginning with a dot)."""
    if not isinstance(values, dict) or depth > DEEPEST:
        return
    if (whole := _stated(values, "", {})) is not None:
        yield "", whole
        return
    for name, value in values.items():
        if name in ABOUT or name.endswith(INTERVALS):
            continue
        if (own := _stated(values, name, values)) is not None:
            yield f".{name}", own
        elif (rows := _rows(value)) is not None:
            yield from _means(rows, "" if name in ("features", "rows") else f".{name}")
        else:
            yield from ((f".{name}{rest}", one) for rest, one in _estimates(value, depth + 1))


def _stated(
    values: Mapping[str, Any], name: str, beside: Mapping[str, Any]
) -> FigureEstimate | None:
    """The number of this name with its interval; without a name, a dict that is one number."""
    if not name:
        value = next((values[n] for n in ("mean", "value") if n in values), None)
        ends = [values.get("low"), values.get("high")]
        return _estimate(value, ends) if all(_is_number(end) for end in ends) else None
    ends = next((beside[name + end] for end in INTERVALS if name + end in beside), None)
    return _estimate(values[name], ends)


def _estimate(value: object, ends: object) -> FigureEstimate | None:
    if not _is_number(value):
        return None
    if isinstance(ends, list) and len(ends) == 2 and all(map(_is_number, ends)):
        return FigureEstimate(float(value), float(ends[0]), float(ends[1]))
    return FigureEstimate(float(value))


def _rows(value: object) -> list[dict[str, Any]] | None:
    """The entries of a list of results, or of results by name; None if it is none."""
    if isinstance(value, list):
        rows = value
    elif isinstance(value, dict) and len(value) > 1:
        rows = list(value.values())
    else:
        return None
    if not rows or len(rows) > MOST_ENTRIES or not all(isinstance(row, dict) for row in rows):
        return None
    alike = all(row.keys() == rows[0].keys() for row in rows)
    # Numbers with their intervals stand for themselves.
    alike = alike and _stated(rows[0], "", {}) is None
    return rows if alike and any(map(_is_number, rows[0].values())) else None


def _means(rows: list[dict[str, Any]], place: str) -> Iterator[tuple[str, FigureEstimate]]:
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name not in ABOUT and all(map(_is_number, values)):
            mean, low, high = interval(map(float, values))
            yield f"{place}.{name}", FigureEstimate(mean, low, high, len(values))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST

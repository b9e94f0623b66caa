"""Evaluations in words: the tables that the terminal prints and the app shows."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from saelab.evaluation.measurement import Column, Measurement, measurements
from saelab.evaluation.results import Evaluation


@dataclass(frozen=True)
class Section:
    """One table.

    Attributes:
        columns: what every SAE has of its own stands once for each, below its name.
        rows: a text for every column.
        about: what a reader must know of the table.
        warnings: sentences of which a reader must be warned.
    """

    title: str
    columns: tuple[Column, ...]
    rows: list[tuple[str, ...]]
    about: str
    warnings: list[str]


def report(
    evaluations: Mapping[str, Evaluation], names: Sequence[str] | None = None
) -> list[Section]:
    """The tables of what was measured of one SAE, or of several beside each other.

    Measurements with one title share a table. Of several SAEs, what all were measured for is
    shown; what does not differ between them is that of the first.

    Args:
        evaluations: by the names of the SAEs.
        names: of the measurements; default: all.
    """
    found: dict[tuple[str, tuple[Column, ...]], Section] = {}
    for name, m in measurements().items():
        if names is not None and name not in names:
            continue
        if not all(name in one.results for one in evaluations.values()):
            continue
        section = _section(m, {run: one.results[name] for run, one in evaluations.items()})
        if before := found.get((m.title, m.columns)):
            before.rows.extend(section.rows)
            before.warnings.extend(section.warnings)
        elif section.rows:
            found[m.title, m.columns] = section
    return list(found.values())


def not_measured(evaluation: Evaluation) -> Section:
    """What could not be measured, and why: measurements, then parts of them."""
    rows = [(name.replace("_", " "), reason) for name, reason in evaluation.skipped.items()]
    for name, m in measurements().items():
        if name in evaluation.results:
            rows += m.left_out(evaluation.results[name])
    columns = Column(number=False), Column(number=False, style="dim")
    return Section("Not measured", columns, rows, "", [])


def _section(m: Measurement, results: Mapping[str, object]) -> Section:
    tables = [_by_key(m.lines(result)) for result in results.values()]
    layout = _layout(m.columns, len(results))
    rows = [
        tuple(tables[run][key][column] for run, column in layout)
        for key in tables[0]
        if all(key in table for table in tables)
    ]
    warnings = [
        sentence if len(results) == 1 else f"{run}: {sentence}"
        for run, result in results.items()
        for sentence in m.warnings(result)
    ]
    return Section(m.title, _heads(m.columns, layout, list(results)), rows, m.about, warnings)


def _by_key(lines: Iterable[tuple[str, ...]]) -> dict[tuple[str, int], tuple[str, ...]]:
    """The lines by their first text, and which of that text they are."""
    seen: Counter[str] = Counter()
    found = {}
    for line in lines:
        found[line[0], seen[line[0]]] = line
        seen[line[0]] += 1
    return found


def _layout(columns: tuple[Column, ...], n: int) -> list[tuple[int, int]]:
    """SAE and column of every printed column."""
    places = []
    for shared, block in groupby(range(len(columns)), key=lambda i: columns[i].shared):
        numbers = list(block)
        places += [(run, i) for run in range(1 if shared else n) for i in numbers]
    return places


def _heads(
    columns: tuple[Column, ...], layout: list[tuple[int, int]], runs: list[str]
) -> tuple[Column, ...]:
    """The columns with the names of the SAEs over the first of each, all names ending below."""
    named, names = set(), []
    for run, i in layout:
        own = not columns[i].shared and run not in named
        named |= {run} if own else set()
        # Of one SAE the tables with columns of several kinds need not say which it is.
        told = own and (len(runs) > 1 or not columns[i].name)
        names.append("\n".join(filter(None, [runs[run] if told else "", columns[i].name])))
    lines = max(name.count("\n") for name in names)
    padded = ["\n" * (lines - name.count("\n")) + name for name in names]
    return tuple(columns[i]._replace(name=n) for (_, i), n in zip(layout, padded, strict=True))

"""Evaluations as the tables that the terminal prints and the app shows."""

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
        columns: the columns; those that differ between SAEs occur once per SAE, below its name.
        rows: the rows, with a text per column.
        about: what a reader must know about the table.
        warnings: sentences that warn the reader.
    """

    title: str
    columns: tuple[Column, ...]
    rows: list[tuple[str, ...]]
    about: str
    warnings: list[str]


def report(
    evaluations: Mapping[str, Evaluation], names: Sequence[str] | None = None
) -> list[Section]:
    """The tables of one SAE's measurements, or those of several SAEs side by side.

    Measurements with the same title share a table. For several SAEs, only measurements that all
    have are shown; shared columns are those of the first.

    Args:
        evaluations: the evaluations, by the names of the SAEs.
        names: names of the measurements; default: all.
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


def beside(
    name: str,
    own: Evaluation,
    others: Mapping[str, Evaluation],
    names: Sequence[str] | None = None,
) -> list[Section]:
    """The tables of other encoders: what the SAE's own lacks, then the others beside its own.

    Args:
        name: the SAE's, for the column of its own encoder.
        own: what was measured with it.
        others: what was measured with other encoders, by their names.
        names: names of the measurements; default: all.
    """
    asked = list(measurements()) if names is None else names
    lacking = [m for m in asked if m not in own.results]
    shared = [m for m in asked if m in own.results]
    return report(others, lacking) + report({name: own, **others}, shared)


def not_measured(evaluation: Evaluation) -> Section:
    """What could not be measured, and why: first measurements, then parts of them."""
    rows: list[tuple[str, ...]] = [
        (name.replace("_", " "), reason) for name, reason in evaluation.skipped.items()
    ]
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
    """The lines by their first text, and a number if several have the same text."""
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
    """The columns' heads, with an SAE's name over its first column; all names end below."""
    named, names = set(), []
    for run, i in layout:
        own = not columns[i].shared and run not in named
        named |= {run} if own else set()
        # For a single SAE, tables with several kinds of columns need not repeat its name.
        told = own and (len(runs) > 1 or not columns[i].name)
        names.append("\n".join(filter(None, [runs[run] if told else "", columns[i].name])))
    lines = max(name.count("\n") for name in names)
    padded = ["\n" * (lines - name.count("\n")) + name for name in names]
    return tuple(columns[i]._replace(name=n) for (_, i), n in zip(layout, padded, strict=True))

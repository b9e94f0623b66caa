"""All tasks of a run in one table: the figure that papers report, and what it took."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from saelab.console import duration, in_bytes
from saelab.evaluation.measurement import Column
from saelab.evaluation.report import Section
from saelab.evaluation.tasks.options import Cost, FigureWithInterval
from saelab.evaluation.tasks.probes import interval
from saelab.formats.csv_file import csv_text


@dataclass(frozen=True)
class Headline:
    """The figure of a task that papers report.

    Attributes:
        task: the kind of task, data: what it was measured on.
        figure: what `value` is, a share; None if it could not be measured.
        beside: the name of a figure that it must be read with, and that share.
        cost: what the data set took, at the first of its rows; None at the others.
        name: what it is called beside other runs' figures of the same task; empty: as `data`.
    """

    task: str
    data: str
    figure: str
    value: FigureWithInterval | None
    beside: tuple[str, float]
    cost: Cost | None = None
    name: str = ""


HEAD = (
    *("task", "data", "figure", "value", "low", "high", "beside", "beside_value"),
    *("tokens", "seconds", "bytes"),
)


def headlines(results: Mapping[str, Any]) -> list[Headline]:
    """Those of all results of `saelab tasks`, in the order of the results."""
    return [each for result in results.values() for each in result.headlines()]


def summed(costs: Sequence[Cost]) -> Cost:
    """What several took together: of memory, the largest."""
    return Cost(
        sum(cost.seconds for cost in costs),
        max((cost.memory for cost in costs), default=0),
        sum(cost.n_tokens for cost in costs),
    )


def summary(results: Mapping[str, Any]) -> Section:
    """The table of all tasks, with what each took, and all together."""
    found = headlines(results)
    rows: list[tuple[str, ...]] = []
    # Said once above their rows, the words leave a line of 80 columns room for the numbers.
    for (task, figure, beside), some in groupby(found, lambda h: (h.task, h.figure, h.beside[0])):
        rows.append((f"{task}: {figure} (beside: {beside})", *[""] * 5))
        rows += [
            (
                f"  {each.data}",
                "-" if each.value is None else interval(each.value),
                f"{100 * each.beside[1]:.1f}",
                *_told(each.cost),
            )
            for each in some
        ]
    costs = [each.cost for each in found if each.cost is not None]
    rows.append(("all", "", "", *_told(summed(costs))))
    columns = (
        Column("task and data", number=False),
        Column("%", style="bold"),
        Column("beside, %", style="dim"),
        Column("tokens"),
        Column("time"),
        Column("memory\nat most"),
    )
    return Section("All tasks", columns, rows, "", [])


def _told(cost: Cost | None) -> tuple[str, str, str]:
    if cost is None:
        return "", "", ""
    return f"{cost.n_tokens:,}", duration(cost.seconds), in_bytes(cost.memory)


def summary_csv(results: Mapping[str, Any]) -> str:
    """The same table as CSV, with shares from 0 to 1, seconds and bytes; without the sums."""
    return csv_text([HEAD, *_csv_rows(headlines(results))])


def _csv_rows(found: Sequence[Headline]) -> Iterator[list[object]]:
    for each in found:
        value, cost, none = each.value, each.cost, (None, None, None)
        numbers = none if value is None else (value.value, value.low, value.high)
        took = none if cost is None else (cost.n_tokens, cost.seconds, cost.memory)
        yield [each.task, each.data, each.figure, *numbers, *each.beside, *took]

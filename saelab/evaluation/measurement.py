"""Measurements, and the list of them; a new measurement is one file and one line here.

`saelab evaluate` and its suites, runs of arrays, `--json`, the printed tables, the app and the
table in docs/measurements.md all follow `measurements()`. Other packages add theirs as
entry points of the group `saelab.measurements` (name = "package.module:MEASUREMENT"), notebooks by
`register_measurement`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError

from saelab.config import UsageError, first_problem
from saelab.evaluation.inputs import Batch, Inputs, Need
from saelab.registry import Registry
from saelab.types import Figures

BUILT_IN = {
    "reconstruction": "saelab.evaluation.reconstruction:RECONSTRUCTION",
    "downstream": "saelab.evaluation.downstream:DOWNSTREAM",
    "amortisation": "saelab.evaluation.amortisation:AMORTISATION",
    "density": "saelab.evaluation.density:DENSITY",
    "dictionary": "saelab.evaluation.dictionary:DICTIONARY",
    "description_length": "saelab.evaluation.mdl:DESCRIPTION_LENGTH",
    "uniformity": "saelab.evaluation.uniformity:UNIFORMITY",
    "ablation": "saelab.evaluation.ablation:ABLATION",
    "probing": "saelab.evaluation.probing:PROBING",
    "absorption": "saelab.evaluation.absorption_tasks:ABSORPTION",
    "recovery": "saelab.evaluation.recovery:RECOVERY",
    "task_probing": "saelab.evaluation.tasks.sparse_probing:PROBING",
    "task_letters": "saelab.evaluation.tasks.letters:LETTERS",
    "task_letters_saebench": "saelab.evaluation.tasks.letters:LETTERS_SAEBENCH",
    "task_tpp": "saelab.evaluation.tasks.tpp:TPP",
    "task_scr": "saelab.evaluation.tasks.scr:SCR",
    "task_ravel": "saelab.evaluation.tasks.ravel:RAVEL",
    "task_unlearning": "saelab.evaluation.tasks.unlearning:UNLEARNING",
}
"""Where each measurement is defined, in the order of measuring and printing."""


Line = tuple[str, str, str]
"""A name, its value, and what the value means."""


class Column(NamedTuple):
    """A column of a printed table.

    Attributes:
        number: whether the column is right-aligned.
        shared: whether the column is the same for every SAE on the same text.
        style: rich's style, e.g. bold or dim.
    """

    name: str = ""
    number: bool = True
    shared: bool = False
    style: str = ""


LINES = (
    Column(number=False, shared=True),
    Column(style="bold"),
    Column(number=False, shared=True, style="dim"),
)
"""The columns of a `Line`."""


class Streamed(NamedTuple):
    """A running measurement that receives the held-out rows batch by batch.

    Attributes:
        update: adds a batch.
        results: returns the result of all batches, or `Skipped`.
    """

    update: Callable[[Batch], object]
    results: Callable[[], Any]


def _nothing(result: object) -> tuple[()]:
    del result
    return ()


@dataclass(frozen=True)
class Measurement:
    """One thing that `evaluate` measures. It has either `measure` or `stream`.

    If its suite is `tasks`, `saelab tasks` measures it instead, and it has neither.

    Attributes:
        name: name of its file `evaluation/NAME.json` and of its attribute of an `Evaluation`.
        title: title of its printed table; measurements with the same title share a table.
        lines: makes the table's rows for a result, one text per column.
        measure: makes the result from the weights, the sample `inputs.rows` or the text; or returns
            `Skipped` with the reason.
        stream: begins a measurement that sees every batch of the pass over the held-out rows.
        result: type of the result: a dataclass, or plain figures by name.
        needs: requirements; if one is missing, the measurement is skipped with the first one's
            reason.
        suite: `core` (always measured), `full`, or `tasks`.
        after: measurements whose results it reads, which are made before it.
        columns: columns of the table.
        about: what a reader must know about the table.
        warnings: sentences that warn a reader about a result.
        left_out: the parts of a result that could not be measured, each with the reason.
    """

    name: str
    title: str
    lines: Callable[[Any], Iterable[tuple[str, ...]]]
    measure: Callable[[Inputs], Any] | None = None
    stream: Callable[[Inputs], Streamed] | None = None
    result: Any = Figures
    needs: tuple[Need, ...] = ()
    suite: Literal["core", "full", "tasks"] = "full"
    after: tuple[str, ...] = ()
    columns: tuple[Column, ...] = LINES
    about: str = ""
    warnings: Callable[[Any], Iterable[str]] = _nothing
    left_out: Callable[[Any], Iterable[tuple[str, str]]] = _nothing

    @property
    def absent(self) -> dict[str, float] | None:
        """The value if there is no result: no figures, or None."""
        return {} if self.result is Figures else None

    def problem(self, inputs: Inputs) -> str | None:
        """Why it cannot be measured for a run; None if it can."""
        return next(filter(None, (need(inputs) for need in self.needs)), None)

    def read(self, values: dict[str, Any], where: str) -> Any:  # noqa: ANN401 - its own type
        """The result in a file; `where` names the file in messages.

        Raises:
            UsageError: the values are no such result.
        """
        found = checked(self.result, {n: v for n, v in values.items() if n != "made"}, where)
        try:
            list(self.lines(found))
        except KeyError as error:
            raise UsageError(f"{where} is damaged: it has no {error}.") from error
        return found


def checked(kind: Any, values: object, where: str) -> Any:  # noqa: ANN401 - of that kind
    """The values of a file, validated as `kind`.

    Raises:
        UsageError: they are invalid; the message names the file `where`.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise UsageError(f"{where} is damaged: {first_problem(error)}.") from error


def _own_name(measurement: object) -> str:
    if not isinstance(measurement, Measurement):
        raise UsageError(f"{measurement!r} is no Measurement.")
    if not measurement.name.isidentifier() or measurement.name in RESERVED:
        raise UsageError(f"A measurement cannot have the name {measurement.name!r}.")
    ways = sum(way is not None for way in (measurement.measure, measurement.stream))
    if ways != (measurement.suite != "tasks"):
        raise UsageError(f"The measurement {measurement.name!r} needs either measure or stream.")
    return measurement.name


RESERVED = ("summary", "held_out", "held_out_text", "results", "skipped", "seconds", "values")
REGISTRY: Registry[Measurement] = Registry(
    "measurement", "saelab.measurements", BUILT_IN, _own_name, lambda m: m.lines.__module__
)


def measurements() -> dict[str, Measurement]:
    """Every measurement by its name: built-in, of other packages, registered."""
    return REGISTRY.everything()


def register_measurement(measurement: Measurement) -> Measurement:
    """Make a measurement of your own known in this process, as a built-in one is.

    Raises:
        UsageError: the name is taken or not allowed, or it is no valid measurement.
    """
    return REGISTRY.register(measurement)

"""Several prompts for `saelab circuit`: their file, and the table of their circuits' scores."""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked
from rich.table import Table

from saelab.config import UsageError, first_problem, shortened
from saelab.console import cells, shown
from saelab.formats.regular import read_regular, utf8

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from saelab.analysis.circuits.explain import Circuit
    from saelab.analysis.circuits.live import GradientCircuit
    from saelab.analysis.circuits.own import Thinned

MOST_BYTES, MOST_PROMPTS = 2**24, 10_000


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Asked:
    """A prompt, the token that is explained, and the one that it is compared with."""

    prompt: str = Field(min_length=1)
    target: str | None = None
    against: str | None = None


TINY = (
    Asked("when tina and vera went to the garden , tina sent a lamp to", "vera", "tina"),
    Asked("echo farmers chef monkeys parrots farmers chef monkeys", "parrots"),
    Asked("( [ { w } ( r ) q", "]", ")"),
)
"""An indirect object, an induction and a bracket, in the tiny model's language."""


def read_prompts(file: Path) -> "tuple[Asked, ...]":
    """The prompts in a file of JSON objects, one a line; `tiny` names some of the tiny model.

    Raises:
        UsageError: the file is missing, empty or too large, or a line is no such object.
    """
    if str(file) == "tiny":
        return TINY
    lines = utf8(read_regular(file, most=MOST_BYTES), file).splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(TypeAdapter(Asked).validate_json(line))
        except ValidationError as error:
            raise UsageError(
                f"{file}, line {number}: {first_problem(error)}; a line is "
                '{"prompt": "...", "target": "...", "against": "..."}.'
            ) from None
    if not 0 < len(found) <= MOST_PROMPTS:
        raise UsageError(f"{file} has {len(found)} prompts; give 1 to {MOST_PROMPTS:,}.")
    return tuple(found)


def each(
    explained: "Callable[[Asked], tuple[Circuit, Path]]", asked: "Sequence[Asked]"
) -> "tuple[list[tuple[Circuit, Path]], list[str]]":
    """What can be explained, and for each prompt that is refused a sentence that names it.

    Raises:
        UsageError: every prompt is refused; it names the first.
    """
    found, refused = [], []
    for number, one in enumerate(asked, start=1):
        try:
            found.append(explained(one))
        except UsageError as error:
            name = f"prompt {number} of {len(asked)}, “{shown(shortened(one.prompt))}”"
            refused.append((name, error))
    if not found:
        name, error = refused[0]
        raise UsageError(f"No prompt can be explained; {name}: {error}")
    return found, [f"{name}, is left out: {error}" for name, error in refused]


def scores_tables(circuits: "Sequence[Circuit]") -> tuple[Table, Table]:
    """Of each circuit and their means: the scores of its graph, and what the live model says."""
    graphs = _table(
        "Shares of the leaves' influence that errors, MLPs and tokens have, and completeness score",
        ("prompt", "errors", "MLPs", "tokens", "score"),
    )
    _fill(graphs, [(_asked(circuit), _scores(circuit)) for circuit in circuits])
    live = _table(
        "In the live model, the share of all latents' effect that some latents keep alone, that is "
        "left without them, and that as many by chance keep",
        ("latents of", "prompt", "number", "kept", "left", "by chance"),
    )
    for what, of in _KINDS.items():
        there = [(circuit, found) for circuit in circuits if (found := of(circuit))]
        _fill(live, [(_asked(circuit), _judged(circuit, found)) for circuit, found in there], what)
    return graphs, live


def caveats(circuits: "Sequence[Circuit]") -> list[str]:
    """Of each circuit whose ratios in the live model mean nothing, the reason of each row."""
    lines = []
    for circuit in circuits:
        rows: dict[str, list[str]] = {}
        for what, of in _KINDS.items():
            if (found := of(circuit)) and (why := found.faithfulness.caveat or circuit.caveat):
                rows.setdefault(why, []).append(what)
        lines += [f"{_asked(circuit)} ({'; '.join(what)}): {why}" for why, what in rows.items()]
    return lines


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=None)
    for name in columns:
        words = name in ("prompt", "latents of")
        table.add_column(name, justify="left" if words else "right", no_wrap=True)
    return table


def _fill(
    table: Table, rows: "Sequence[tuple[str, Sequence[float | int | None]]]", *first: str
) -> None:
    for asked, figures in rows:
        table.add_row(*cells(*first, asked, *map(_cell, figures)))
    if len(rows) > 1:
        columns = zip(*(figures for _, figures in rows), strict=True)
        known = [[x for x in column if x is not None] for column in columns]
        means = [sum(column) / len(column) if column else None for column in known]
        table.add_row(*cells(*first, "mean", *map(_cell, means)), style="bold")


def _asked(circuit: "Circuit") -> str:
    """The end of the prompt, and the token that is explained."""
    facts = circuit.graph.facts
    token = str(facts["target"]).split(" - ")[0].removeprefix("logit ")
    return f"... {facts['prompt'][-16:]} > {token}"


def _scores(circuit: "Circuit") -> list[float]:
    found = circuit.scores
    return [found.error_influence, found.mlp_influence, found.replacement, found.completeness]


def _judged(
    circuit: "Circuit", found: "Circuit | GradientCircuit | Thinned"
) -> list[float | int | None]:
    """The number of latents; faithfulness, completeness, and the first by chance."""
    from saelab.analysis.circuits.explain import chance_values

    judged = found.faithfulness
    if judged.caveat or circuit.caveat:
        return [judged.n_members, None, None, None]
    chance = chance_values(found.by_chance).get("by_chance", {}).get("faithfulness")
    return [judged.n_members, judged.faithfulness, judged.completeness, chance]


_KINDS: "dict[str, Callable[[Circuit], Circuit | GradientCircuit | Thinned | None]]" = {
    "the graph": lambda circuit: circuit,
    "it, thinned": lambda circuit: circuit.thinned,
    "gradients": lambda circuit: circuit.by_gradients,
}


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.{2 if abs(value) < 5 else 0}f}"

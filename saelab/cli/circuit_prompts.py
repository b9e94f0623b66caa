"""Several prompts for `saelab circuit`: their file, and the table of their circuits' scores."""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked
from rich.table import Table

from saelab.config import UsageError, first_problem
from saelab.console import cells
from saelab.formats.regular import read_regular

if TYPE_CHECKING:
    from collections.abc import Sequence

    from saelab.analysis.circuits.ablation import Faithfulness
    from saelab.analysis.circuits.explain import Circuit

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
    try:
        lines = read_regular(file, most=MOST_BYTES).decode().splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is no text: {error}.") from error
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


def scores_table(circuits: "Sequence[Circuit]") -> Table:
    """A line for each circuit, and their means: scores of its graph, and by the live model."""
    table = Table(
        title="Shares of the leaves' influence that errors, MLPs and tokens have; completeness "
        "score; in the live model, the share of the latents' effect that some keep alone, and "
        "that is left without them: of the graph's latents, of these thinned, and of those by "
        "integrated gradients",
        title_justify="left",
        box=None,
    )
    table.add_column("prompt")
    for name in ("errors", "MLPs", "tokens", "score", "graph", "kept", "left", "chance"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("thin", "kept", "left", "IG", "kept", "left", "chance"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = [_figures(circuit) for circuit in circuits]
    for circuit, figures in zip(circuits, rows, strict=True):
        table.add_row(*cells(_asked(circuit), *map(_cell, figures)))
    if len(rows) > 1:
        columns = [[x for x in column if x is not None] for column in zip(*rows, strict=True)]
        means = [sum(known) / len(known) if known else None for known in columns]
        table.add_row(*cells("mean", *map(_cell, means)), style="bold")
    return table


def _asked(circuit: "Circuit") -> str:
    """The end of the prompt, and the token that is explained."""
    facts = circuit.graph.facts
    token = str(facts["target"]).split(" - ")[0].removeprefix("logit ")
    return f"... {facts['prompt'][-16:]} > {token}"


def _figures(circuit: "Circuit") -> list[float | None]:
    scores, other = circuit.scores, circuit.by_gradients
    graph = [scores.error_influence, scores.mlp_influence, scores.replacement, scores.completeness]
    own = _judged(circuit.faithfulness, circuit.by_chance)
    by_gradients = [None] * 4 if other is None else _judged(other.faithfulness, other.by_chance)
    few = circuit.thinned
    thinned = [None] * 3 if few is None else _judged(few, ())[:3]
    return [*graph, *own, *thinned, *by_gradients]


def _judged(found: "Faithfulness", draws: "Sequence[Faithfulness]") -> list[float | None]:
    """The number of latents; faithfulness, completeness, and the first by chance."""
    from saelab.analysis.circuits.explain import chance_values

    chance = chance_values(draws).get("by_chance", {}).get("faithfulness")
    if found.whole == found.empty or not found.n_members:
        return [float(found.n_members), None, None, None]
    return [float(found.n_members), found.faithfulness, found.completeness, chance]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 5 else f"{value:.2f}"

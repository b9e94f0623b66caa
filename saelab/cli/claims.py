"""`saelab claims`: measure the papers' claims again, in one table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from saelab.cli.options import Metavar
from saelab.cli.parse import parse
from saelab.config import Config, Heading, UsageError
from saelab.files import atomic_write_json, check_writable

if TYPE_CHECKING:
    from saelab.claims.claim import Claim
    from saelab.claims.measured import Failed, Measured


class ClaimsArguments(Config):
    """Measure every paper's claim again at small scale, in one table.

    A claim is measured with several seeds, on planted rows or on the tiny language model; its
    verdict is: reproduced, in part, or not reproduced. Claims that change the model's activations
    are compared with random directions and as many random latents. Finished claims are kept in
    --out as long as code and options are the same, so the same command continues. All claims take
    less than 30 minutes on 2 CPU cores.

        saelab claims
        saelab claims --only abs-topk-signed matryoshka --seeds 5
        saelab claims --model models/smollm2 --text my_text.jsonl --n-tokens 500000
    """

    only: Annotated[tuple[str, ...], Metavar("NAME"), Heading("Claims")] = ()
    """Names of claims; default: all."""
    seeds: int = Field(default=3, ge=1, le=100)
    """Seeds per claim. The intervals are Student's t (95 %) over seeds; one seed has none."""
    again: bool = False
    """Measure finished claims again, from new activations and runs."""
    model: Annotated[str, Heading("Language model")] = "tiny"
    """tiny, or a language model as for `saelab harvest`. Then only those claims are measured that
    can be on any model: with as many latents per dimension, at sites at the same depth."""
    text: str = "tiny"
    """With --model: its text, as for `saelab harvest`."""
    n_tokens: int = Field(default=150_000, ge=10_000)
    """Tokens of the activation store; training reads as many more."""
    out: Annotated[Path, Heading("Output")] = Path("runs/claims")
    """Directory for the activations, the runs, the outcomes, and claims.json."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""
    json_: bool = False
    """Print JSON instead of the table."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(ClaimsArguments, "claims", arguments)
    check_writable(args.out, "--out")
    # Imported here, so that --help does not wait for torch.
    from saelab.activations.open_text import check_text
    from saelab.claims.claim import claims
    from saelab.claims.measure_all import ClaimOptions, Workspace, measure_claims, table_values
    from saelab.claims.measured import Failed, Measured, in_order
    from saelab.lock import writing

    chosen = _chosen(args)
    check_text(args.text)
    options = ClaimOptions(args.seeds, args.model, args.text, args.n_tokens, args.device)
    with writing(args.out):
        workspace = Workspace(args.out, options)
        workspace.check()
        rows: list[Measured] = []
        failed: list[Failed] = []
        for found in measure_claims(chosen, workspace, again=args.again):
            rows.append(found) if isinstance(found, Measured) else failed.append(found)
        values = table_values(in_order(rows, list(claims())), failed)
        atomic_write_json(args.out / "claims.json", values)
    if args.json_:
        print(json.dumps(values, indent=2))
    else:
        _print(rows, failed, details=bool(args.only))
        print(args.out / "claims.json")
    return 1 if failed else 0


def _chosen(args: ClaimsArguments) -> "list[Claim]":
    from saelab.claims.claim import claims, find_claim

    found = [find_claim(name) for name in dict.fromkeys(args.only)] or list(claims().values())
    if args.model == "tiny":
        return found
    fitting = [claim for claim in found if claim.with_model]
    if args.only and len(fitting) < len(found):
        name = next(claim.name for claim in found if not claim.with_model)
        names = ", ".join(claim.name for claim in claims().values() if claim.with_model)
        raise UsageError(f"{name} cannot be measured on another model; {names} can.")
    return fitting


def _print(rows: "Sequence[Measured]", failed: "Sequence[Failed]", *, details: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from saelab.claims.measured import COLUMNS, cells
    from saelab.cli.tables import wide_console

    console = wide_console()
    table = Table(box=None, show_lines=False, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="right" if name == "s" else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, cells(row)))
    console.print(table)
    for row in rows:
        if details:
            _print_details(row)
    for one in failed:
        print(f"{one.name} failed: {one.error}")
    counts = [row.verdict for row in rows]
    said = [f"{counts.count(v)} {v}" for v in ("reproduced", "in part", "not reproduced")]
    wall, cpu = (sum(getattr(row, name) for row in rows) for name in ("seconds", "cpu_seconds"))
    print(f"\n{', '.join(said)}, {len(failed)} failed. {wall:.0f} s, {cpu:.0f} s of processors.")


def _print_details(row: "Measured") -> None:
    print(f"\n{row.name}: {row.verdict}. {row.why}".rstrip())
    for name, figure in {**row.outcome.figures, **row.outcome.controls}.items():
        print(f"  {figure.text():<28} {name}, {figure.n} {figure.over}")
    for part, held in row.outcome.holds.items():
        print(f"  {'holds' if held else 'not shown':<28} {part}")

"""`saelab names`: labels, notes and explanations of latents, to files and from them."""

from pathlib import Path
from typing import Annotated

from rich.table import Table

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Config, Heading, UsageError
from saelab.console import cells

SAID = ("explanation", "label", "note")
"""What is shown of a row: the first of these that it has."""
LONGEST_SHOWN = 60
"""Characters of a text in the table."""


class NamesArguments(Config):
    """Write what a run's latents are called to a file, or read it from one.

    These are the labels, notes and bookmarks of the feature browser, and explanations with their
    source, their score and readers' verdicts. Without an option they are printed.

    A file is .jsonl or .csv. One from elsewhere needs `latent` and `label`, or `latent` and
    `explanation` (with `model`, if you know it; `side` is `input` or `output`). Explanations that
    the run lacks make a set of their own. Nothing is lost: the browser shows earlier labels.

        saelab names runs/topk --out names.csv
        saelab names runs/topk --import names.jsonl
    """

    run: Annotated[Path, Positional("RUN")]
    """The run's directory."""
    out: Annotated[Path | None, Heading("Files")] = None
    """Write the names to this file."""
    import_: Path | None = None
    """Read names from this file."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(NamesArguments, "names", arguments)
    if args.out is not None and args.import_ is not None:
        raise UsageError("Got --out and --import; give one.")
    from saelab.analysis.names_file import (
        form_of,
        import_names,
        names_of,
        read_names,
        write_names,
    )
    from saelab.files import check_file
    from saelab.lock import writing
    from saelab.training.run import Run

    run = Run(args.run)
    if args.out is not None:
        check_file(args.out, "--out")
        form_of(args.out)
        print(f"{write_names(args.out, run.path)} rows")
        print(args.out)
    elif args.import_ is not None:
        rows = read_names(args.import_)
        run.check_finished()
        with writing(run.path):
            print(import_names(run, rows))
        print(run.path)
    else:
        _print(list(names_of(run.path)))
    return 0


def _print(rows: list[dict[str, object]]) -> None:
    from saelab.cli.tables import wide_console

    if not rows:
        print("No latent has a label, a note or an explanation.")
        return
    table = Table(box=None)
    table.add_column("latent", justify="right")
    table.add_column("said", max_width=LONGEST_SHOWN, no_wrap=True, overflow="ellipsis")
    for name in ("by", "score", "verdict"):
        table.add_column(name)
    for row in rows:
        score = row.get("score")
        score_text = f"{score:.2f} by {row['judge']}" if isinstance(score, float) else ""
        said = next((row[field] for field in SAID if row.get(field)), "★")
        by = f"{row['model']}, {row['side']}" if "explanation" in row else "a reader"
        words = (str(row["latent"]), str(said), by, score_text, str(row.get("verdict", "")))
        table.add_row(*cells(*words))
    console = wide_console()
    console.print(table)
    if any(len(str(row.get(field, ""))) > LONGEST_SHOWN for row in rows for field in SAID):
        console.print("Long texts are cut here; --out FILE writes them whole.", style="dim")

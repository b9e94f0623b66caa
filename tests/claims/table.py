"""The table of claims in docs/claims.md, from the shipped outcomes; `make claims` writes both."""

import sys
from pathlib import Path

from saelab.claims.claim import BUILT_IN
from saelab.claims.measured import COLUMNS, SHIPPED, Measured, cells, in_order, read_row, read_rows
from saelab.files import atomic_write_json

PAGE = Path(__file__).resolve().parents[2] / "docs" / "claims.md"
START, END = "<!-- claims: written by make claims -->\n", "<!-- end of claims -->\n"


def table(rows: list[Measured]) -> str:
    """The table, one line a claim."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *map(cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def written() -> str:
    """What stands between the page's marks."""
    return PAGE.read_text().partition(START)[2].partition(END)[0]


def merged(new: list[Measured]) -> list[Measured]:
    """The shipped rows of claims that still exist, with new ones in their place."""
    rows = {row.name: row for row in [*read_rows(SHIPPED), *new] if row.name in BUILT_IN}
    return in_order(list(rows.values()), list(BUILT_IN))


def found(path: Path) -> list[Measured]:
    """The rows of a `claims.json`, or of a directory of outcomes that is not complete."""
    return [read_row(one) for one in path.glob("*.json")] if path.is_dir() else read_rows(path)


def main(paths: list[str]) -> int:
    """Add the rows of these files to the shipped ones, and write the table into its page."""
    rows = merged([row for path in paths for row in found(Path(path))])
    atomic_write_json(SHIPPED, {"claims": [row.values() for row in rows]})
    before, mark, rest = PAGE.read_text().partition(START)
    assert mark, f"{PAGE} has no place for the table."
    PAGE.write_text(before + START + table(rows) + END + rest.partition(END)[2])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Damage every file of runs and of a store in many ways, and look how each is read.

    make fuzz N=1000

prints what became of each kind of file, the slowest and the largest, and all that must not be; it
exits with 1 if there is any. A failing case is repeated by its file and seed:

    PYTHONPATH=tests python -m fuzz --file runs/one/features.h5 --seed 17
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from fuzz.campaign import Campaign
from fuzz.workers import Verdict
from rich.console import Console
from rich.table import Table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    console = Console(width=150)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(
        prefix="saelab-fuzz-", ignore_cleanup_errors=True
    ) as directory:
        campaign = Campaign.begin(Path(directory), jobs=options.jobs)
        if options.file is not None:
            verdicts = [campaign.one(options.file, options.seed)]
            for finding in verdicts[0].findings:
                console.print(finding, markup=False)
        else:
            verdicts = []
            for verdict in campaign.cases(options.n, options.seed, options.readers):
                verdicts.append(verdict)
                if verdict.problems:
                    console.print(repeat(verdict), *verdict.problems, sep="\n  ", markup=False)
                    sys.stdout.flush()
    report(console, verdicts)
    console.print(f"{len(verdicts)} cases in {time.monotonic() - begun:.0f} s")
    return 1 if any(verdict.problems for verdict in verdicts) else 0


def repeat(verdict: Verdict) -> str:
    """How a case is repeated, and what it is."""
    case = verdict.case
    command = f"PYTHONPATH=tests python -m fuzz --file {case.file} --seed {case.seed}"
    return f"{command}  # {verdict.done[:100]}"


def report(console: Console, verdicts: list[Verdict]) -> None:
    """The tables."""
    table = Table(title="Files by what became of them")
    outcomes = sorted({v.outcome.split(" (")[0] for v in verdicts})
    for name in ("file", "cases", *outcomes, "most CPU, s", "most memory, MB more"):
        table.add_column(name)
    for kind in sorted({v.kind for v in verdicts}):
        of = [v for v in verdicts if v.kind == kind]
        counts = Counter(v.outcome.split(" (")[0] for v in of)
        row = [str(counts[outcome] or "") for outcome in outcomes]
        slowest, largest = max(v.cpu_s for v in of), max(v.growth_mb for v in of)
        table.add_row(kind, str(len(of)), *row, f"{slowest:.1f}", f"{largest:.0f}")
    console.print(table)
    for title, key in (("Slowest", "cpu_s"), ("Largest", "growth_mb")):
        console.print(title)
        for verdict in sorted(verdicts, key=lambda v: getattr(v, key), reverse=True)[:5]:
            console.print(f"  {getattr(verdict, key):.1f}  {repeat(verdict)}", markup=False)


if __name__ == "__main__":
    sys.exit(main())

"""The runs that the app is measured on: two large made-up ones, and one of the shipped model."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.large_run import Size, write_large_run
from benchmarks.live_run import write_live_run

LIVE = "live"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that `prepared` reads, and that of the file of results."""
    parser.add_argument("--runs", type=Path, help="a directory to keep the runs in")
    parser.add_argument("--d-sae", type=int, default=Size.d_sae)
    parser.add_argument("--json", type=Path)


@contextmanager
def prepared(options: argparse.Namespace) -> Iterator[Path]:
    """The directory of `run0`, `run1` and `live`; those that are not there are made."""
    with tempfile.TemporaryDirectory() as made:
        runs = options.runs or Path(made)
        for seed in (0, 1):
            if not (runs / f"run{seed}" / "metrics.jsonl").is_file():
                write_large_run(runs / f"run{seed}", Size(d_sae=options.d_sae), seed)
        if not (runs / LIVE / "features.h5").is_file():
            write_live_run(runs / LIVE)
        yield runs

"""`saelab publish`: what a run's latents do, as pages to send to somebody."""

import importlib.util
from importlib import import_module
from pathlib import Path
from typing import Annotated

from pydantic import NonNegativeInt

from saelab.cli.options import Positional
from saelab.cli.parse import parse
from saelab.config import Config, UsageError
from saelab.files import check_writable

WRITER = "feature_browser.publish.write"
"""The part of the app that writes; the library does not import it."""


class PublishArguments(Config):
    """Write runs as HTML that opens from a disk, without a server or a network.

    A file for each latent (examples, histogram, logits, names), the list of latents with a search,
    each circuit as a picture and a table, the figures of the evaluation, and a scoreboard of the
    runs, as the feature browser draws them. Its size is said before it is written. The text of the
    examples goes along: whoever gets the pages can read it.

        saelab publish runs/topk --out site
        saelab publish runs/topk --latents 12 99 204 --out site
        saelab publish runs/topk --list names.csv --out site
    """

    runs: Annotated[tuple[Path, ...], Positional("RUN")]
    """Directories of runs with features."""
    out: Path
    """The directory of the site; open index.html there."""
    latents: tuple[NonNegativeInt, ...] = ()
    """The latents to publish; default: all of a run with up to 2048."""
    list_: Path | None = None
    """Publish the latents of this file, as `saelab names RUN --out` writes it."""
    all_: bool = False
    """Publish all latents of runs with more than 2048."""


def main(arguments: list[str]) -> int:
    """Parse and run."""
    args = parse(PublishArguments, "publish", arguments)
    check_writable(args.out, "--out")
    given = [("--latents", args.latents), ("--list", args.list_), ("--all", args.all_)]
    if len(names := [name for name, value in given if value]) > 1:
        raise UsageError(f"Got {' and '.join(names)}; give one.")
    if len(args.runs) > 1 and (args.latents or args.list_):
        raise UsageError(f"{names[0]} chooses latents of one run; give a single RUN.")
    if importlib.util.find_spec("feature_browser") is None:
        raise UsageError("The app is not installed beside saelab; install the whole project.")
    from saelab.console import in_bytes

    latents = _listed(args.list_) if args.list_ is not None else args.latents
    write_site = import_module(WRITER).write_site
    size = write_site(args.runs, args.out, latents=latents, every=args.all_)
    print(f"{size.n_files} files, {in_bytes(size.n_bytes)}")
    print(args.out / "index.html")
    return 0


def _listed(path: Path) -> tuple[int, ...]:
    from saelab.analysis.names_file import read_names

    found = {int(row["latent"]) for row in read_names(path)}
    if not found:
        raise UsageError(f"{path} names no latent.")
    return tuple(sorted(found))

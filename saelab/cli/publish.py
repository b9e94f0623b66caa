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
        saelab publish runs/topk --list "gender" --out site
    """

    runs: Annotated[tuple[Path, ...], Positional("RUN")]
    """Directories of runs with features."""
    out: Path
    """The directory of the site; open index.html there."""
    latents: tuple[NonNegativeInt, ...] = ()
    """The latents to publish; default: all of a run with up to 2048."""
    list_: str | None = None
    """Publish a list of the feature browser by its name, in its order and with its comments; or,
    where no list has this name, the latents of a file, as `saelab names RUN --out` writes it."""
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

    comments: dict[int, str] = {}
    for run in args.runs if args.list_ is not None else ():
        comments = _listed(run, str(args.list_))
    write_site = import_module(WRITER).write_site
    size = write_site(
        args.runs,
        args.out,
        latents=args.latents or tuple(comments),
        every=args.all_,
        comments=comments,
    )
    print(f"{size.n_files} files, {in_bytes(size.n_bytes)}")
    print(args.out / "index.html")
    return 0


def _listed(run: Path, name: str) -> dict[int, str]:
    """The latents of a file, or of a run's list, in order, with their comments."""
    from saelab.analysis.lists_file import list_of
    from saelab.analysis.names_file import read_names
    from saelab.analysis.notes import Notes

    if name in Notes(run).lists() or not Path(name).is_file():
        return {entry.latent: entry.comment for entry in list_of(run, name)}
    found = {int(row["latent"]) for row in read_names(Path(name))}
    if not found:
        raise UsageError(f"{name} names no latent.")
    return dict.fromkeys(sorted(found), "")

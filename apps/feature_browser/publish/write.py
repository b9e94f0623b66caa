"""Writing a site: what it will take is said before, what it took after."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from streamlit.logger import set_log_level

from feature_browser.data.catalogue import Catalogue, RunCard, read_card
from feature_browser.draw.boxes import message
from feature_browser.draw.markup import Html
from feature_browser.pages.scoreboard import AT_FIRST, ScoreboardAddress, figures_table
from feature_browser.publish.document import shared_files
from feature_browser.publish.site import File, PublishedRun, cover, slug
from saelab.analysis.records import Features
from saelab.analysis.scoreboard import scoreboard
from saelab.config import UsageError
from saelab.console import in_bytes, progress, say
from saelab.files import atomic_write, check_only, is_temporary
from saelab.resources import free_bytes

MOST = 2048
"""Latents that are published without being asked for by number."""
SAMPLE = 8
NAMED = 3
"""Pages of an earlier site that a refusal names."""
INDEX = "index.html"
NO_COMMENTS: Mapping[int, str] = {}
Choose = Callable[[RunCard], list[int]]


@dataclass(frozen=True)
class SiteSize:
    """What was written."""

    n_files: int
    n_bytes: int


def write_site(
    paths: Sequence[Path],
    out: Path,
    *,
    latents: Sequence[int] = (),
    every: bool = False,
    comments: Mapping[int, str] = NO_COMMENTS,
) -> SiteSize:
    """Write the site of some runs to `out`, which may hold an earlier one of the same runs.

    Args:
        paths: the runs' directories.
        out: a directory; files that are not the site's are refused, and so are pages of an earlier
            site that this one does not write again.
        latents: those to publish, in this order; default: all of a run with up to `MOST`.
        every: publish all latents of any number.
        comments: what is said of latents beside their names.

    Raises:
        UsageError: a run is unfinished, damaged or without features; a latent does not exist, or
            too many would be published; the disk is too small.
    """
    # Its caches work without its server, but it warns of that.
    set_log_level(logging.ERROR)
    runs = _published(paths, lambda card: chosen(card, latents, every=every), comments)
    check_only(out, lambda name: _is_ours(name, runs))
    files = _files(runs)
    _check_pages(out, {name for name, _ in files})
    _announce(runs, out)
    n_bytes = 0
    with progress("Publish", len(files), "files") as bar:
        for name, make in files:
            data = make()
            atomic_write(out / name, data)
            n_bytes += len(data)
            bar.advance(1)
    return SiteSize(len(files), n_bytes)


def _published(
    paths: Sequence[Path], choose: Choose, comments: Mapping[int, str]
) -> list[PublishedRun]:
    cards = [read_card(path, path.parent) for path in paths]
    names = [card.name for card in cards]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"Two of the runs are called {twice}; rename one.")
    catalogue = Catalogue(Path(), {card.name: card for card in cards})
    runs: dict[str, PublishedRun] = {}
    for number, card in enumerate(cards, 1):
        folder = slug(card.name)
        taken = {run.folder for run in runs.values()}
        folder = f"{folder}-{number}" if folder in taken else folder
        runs[card.name] = PublishedRun(catalogue, card, folder, choose(card), runs, comments)
    return list(runs.values())


def chosen(card: RunCard, wanted: Sequence[int], *, every: bool) -> list[int]:
    """The latents of a run that are published, in their order.

    Raises:
        UsageError: the run has no features or not this latent, or too many latents.
    """
    if not card.evidence_path.is_file():
        raise UsageError(f"{card.path} has no features; run `saelab features {card.path}`.")
    features = Features.of(card.path)
    n = len(features)
    features.check(wanted)
    if not wanted and n > MOST and not every:
        raise UsageError(
            f"{card.path} has {n} latents; choose some with --latents or --list, or give --all."
        )
    return list(dict.fromkeys(wanted)) or list(features.latents)


def _files(runs: Sequence[PublishedRun]) -> list[File]:
    shared = [(name, lambda data=data: data) for name, data in shared_files().items()]
    own = [(f"{run.folder}/{name}", make) for run in runs for name, make in run.files()]
    # The first page is the last to be written: what it leads to is there.
    return [*shared, *own, (INDEX, lambda: cover(runs, _board(runs)))]


def _board(runs: Sequence[PublishedRun]) -> Html:
    cards = {run.card.name: run.card for run in runs}
    found = scoreboard({name: card.path for name, card in cards.items()})
    if not found.names:
        return message("Nothing is measured yet", "`saelab evaluate RUN` measures a run.")
    shown = found.names[:AT_FIRST]
    return figures_table(cards, found, shown, ScoreboardAddress())


def _is_ours(name: str, runs: Sequence[PublishedRun]) -> bool:
    folder, _, file = name.rpartition("/")
    if not folder:
        return file in (INDEX, *shared_files())
    return folder in {run.folder for run in runs} and file.endswith(".html")


def _check_pages(out: Path, names: Collection[str]) -> None:
    """Refuse pages of an earlier site that would stay: whoever gets the site can read them."""
    there = (path.relative_to(out).as_posix() for path in sorted(out.rglob("*.html")))
    if old := [name for name in there if name not in names and not is_temporary(Path(name))]:
        more = f" and {len(old) - NAMED} more" if len(old) > NAMED else ""
        raise UsageError(
            f"{out} holds pages of an earlier site that are not published now: "
            f"{', '.join(old[:NAMED])}{more}; remove them, or give another --out."
        )


def _announce(runs: Sequence[PublishedRun], out: Path) -> None:
    """Say how large the site will be: from some latents of each run, drawn at equal distances."""
    shared = shared_files()
    total = sum(map(len, shared.values()))
    n_files = len(shared) + 1
    for run in runs:
        made = list(run.files())
        pages = made[-len(run.latents) :]
        drawn = pages[:: max(1, len(pages) // SAMPLE)][:SAMPLE]
        total += sum(len(make()) for _, make in drawn) * len(pages) // len(drawn)
        total += sum(len(make()) for _, make in made[: -len(run.latents)])
        n_files += len(made)
    free = free_bytes(out)
    if total > free:
        raise UsageError(
            f"The site takes about {in_bytes(total)}, and {in_bytes(free)} is free at {out}; "
            "choose fewer latents, or another place."
        )
    say(f"The site takes about {in_bytes(total)} in {n_files} files ({in_bytes(free)} free).")

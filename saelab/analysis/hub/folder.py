"""The folder of a run as a hub gets it: without what says where it was made."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from saelab.analysis.hub.card import RUN_FOLDER, CardOptions, anonymous, card
from saelab.config import UsageError
from saelab.files import atomic_write, check_only, replace_file
from saelab.formats.json_file import read_sealed_json, write_sealed_json
from saelab.sae.interop.foreign import ForeignSAE
from saelab.sae.interop.sae_lens_write import write_sae_lens
from saelab.training.give import give
from saelab.training.run import Run
from saelab.training.run_paths import CONFIG, WEIGHTS

RECORD = "provenance.json"
CARD = "README.md"


def write_folder(run: Run, directory: Path, options: CardOptions) -> dict[str, Path]:
    """Write what a hub gets of a run; returns the files by their paths in the repository.

    The run itself is in `saelab/`: its configuration, provenance, weights and evaluations, with
    the last names of paths only. The same SAE for SAELens, if it has the architecture, is in a
    folder named after the site. README.md is the model card.

    Raises:
        UsageError: the run is unfinished or damaged, or `directory` holds other files, or those of
            another run. What is left of an interrupted call is written again.
    """
    run.check_finished()
    foreign = _for_sae_lens(run)
    site = None if foreign is None else re.sub(r"[^\w.-]", "_", str(run.options["site"]))
    check_only(directory, lambda name: name == CARD or name.split("/")[0] in (RUN_FOLDER, site))
    d_in = run.load_sae().d_in if foreign is None else foreign.d_in
    text = card(run, replace(options, sae_lens=site), d_in)
    _check_same(run, directory)
    for name, values in _records(run):
        write_sealed_json(directory / RUN_FOLDER / name, anonymous(values))
    with run.weights.open("rb") as weights:
        replace_file(directory / RUN_FOLDER / WEIGHTS, lambda to: shutil.copyfileobj(weights, to))
    if foreign is not None and site is not None:
        write_sae_lens(foreign, directory / site)
    atomic_write(directory / CARD, text.encode())
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path for path in found}


def _check_same(run: Run, directory: Path) -> None:
    place = directory / RUN_FOLDER / RECORD
    if place.exists() and read_sealed_json(place) != anonymous(run.provenance()):
        raise UsageError(f"{directory} holds another run; name a new directory.")


def _for_sae_lens(run: Run) -> ForeignSAE | None:
    """The SAE in the neutral form; None if SAELens cannot have it."""
    try:
        foreign = give(run)
    except UsageError:
        return None
    return None if foreign.transcoder and foreign.threshold is None else foreign


def _records(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """The run's JSON files by their names."""
    evaluations = sorted((run.path / "evaluation").glob("**/*.json"))
    for path in (run.path / CONFIG, run.path / RECORD, *evaluations):
        yield path.relative_to(run.path).as_posix(), read_sealed_json(path)

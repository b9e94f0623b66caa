"""Finding any damage in a run."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saelab.activations.format import read_manifest
from saelab.activations.verify import Damage
from saelab.analysis.circuits.graph_file import load_graph_hdf5
from saelab.analysis.circuits.graph_json import load_graph
from saelab.analysis.explain.records import DIRECTORY as EXPLANATIONS
from saelab.analysis.explain.records import TEXTS, read_set
from saelab.analysis.explain.scores import read_scores
from saelab.analysis.feature_file import FeatureFile
from saelab.analysis.sharing.records import FILE, load_sharing
from saelab.analysis.steering.records import load_steering_scores
from saelab.analysis.transport.records import read_transport, transport_files
from saelab.analysis.transport.transport_file import DIRECTORY
from saelab.clients.ledger import Ledger
from saelab.config import UsageError
from saelab.formats.hdf5_file import check_hdf5, read_hdf5
from saelab.formats.json_file import SEAL, read_object, read_sealed_json
from saelab.formats.tensors import check_seal, read_tensor_header
from saelab.moved import beside, now_at
from saelab.sae.storage import FORMAT, check_sae, read_sae_header
from saelab.training.run import Run
from saelab.training.run_paths import CHOSEN_FEATURES, CONFIG, FEATURES, WEIGHTS, check_run

MAX_FILES = 100_000


@dataclass
class RunCheck:
    """Results of checking a run.

    Attributes:
        damages: one fault of one file each; empty if the run is whole.
        unsealed: older files without checksums; they can be read, but not checked further.
        notes: one sentence each for what could not be checked.
        n_files: number of files checked.
    """

    root: Path
    damages: list[Damage] = field(default_factory=list)
    unsealed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    n_files: int = 0

    def trying(self, path: Path, check: Callable[[], object]) -> bool:
        """Record a refusal by `check` as damage of the file at `path`; True if there was none."""
        try:
            check()
        except UsageError as error:
            self.add(path, str(error))
        except OSError as error:
            self.add(path, f"cannot be read: {error.strerror}.")
        else:
            return True
        return False

    def add(self, path: Path, problem: str) -> None:
        """Record damage of the file at `path`."""
        told = problem.removeprefix(str(path)).lstrip(": ")
        self.damages.append(Damage(str(path.relative_to(self.root)), told))


def verify_run(path: Path | str) -> RunCheck:
    """Everything wrong with the run at `path`, and with those inside it.

    It checks the seal and every byte of each file that saelab writes: configuration, provenance,
    weights (also for finite values), checkpoints, metrics, evaluations, features, steering scores,
    transport, circuits and explanations. It also checks that they belong to one SAE: the weights
    have the configuration's shape, and everything was measured on these weights. If the store
    exists, it must be the one that the run was trained on.

    Raises:
        UsageError: there is no run at `path`.
    """
    root = Path(path)
    check_run(root)
    check = RunCheck(root)
    runs = {root: None}
    for file in _files(root, check):
        check.n_files += 1
        check.trying(file, lambda file=file: _check_file(file, check))
        if file.name in (CONFIG, WEIGHTS):
            runs[file.parent] = None
    whole = {damage.file for damage in check.damages}
    for run in runs:
        if str((run / CONFIG).relative_to(root)) not in whole:
            _check_agreement(run, check, whole)
    return check


def _files(root: Path, check: RunCheck) -> Iterator[Path]:
    """The run's files, except hidden and temporary ones and locks."""
    n = 0
    for directory, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            n += 1
            if n > MAX_FILES:
                check.notes.append(
                    f"There are more than {MAX_FILES:,} files; the rest is unchecked."
                )
                return
            if not name.startswith("."):
                yield Path(directory) / name


def _check_file(path: Path, check: RunCheck) -> None:
    name = str(path.relative_to(check.root))
    if path.suffix == ".json":
        _read_known_json(path)
        sealed = SEAL in read_object(path, most=2**29, max_values=10_000_000)
    elif path.suffix == ".safetensors":
        header = read_tensor_header(path)
        if path.name == WEIGHTS or header.metadata.get("format") == FORMAT:
            check_sae(path)
        check_seal(header)
        sealed = header.sealed
    elif path.suffix == ".h5":
        _read_known(path)
        arrays = read_hdf5(path)
        check_hdf5(arrays)
        sealed = arrays.sealed
    elif path.suffix == ".jsonl":
        _read_log(path)
        return
    else:
        check.n_files -= 1
        return
    if not sealed:
        check.unsealed.append(name)


def _read_log(path: Path) -> None:
    if path.parent.parent.name == EXPLANATIONS:
        Ledger(path)
    elif path.name == "metrics.jsonl":
        Run(path.parent).metrics()


def _read_known_json(path: Path) -> None:
    """As `_read_known`, of a JSON file."""
    if path.parent.name == "circuits":
        load_graph(path)
    elif path.parent.parent.name == EXPLANATIONS and path.name == TEXTS:
        read_set(path.parent)
    elif path.parent.parent.name == EXPLANATIONS and path.name.startswith("scores_"):
        read_scores(path)
    read_sealed_json(path, most=2**29, max_values=10_000_000)


def _read_known(path: Path) -> None:
    """Read an HDF5 file as the kind that its place in the run implies."""
    if path.name in (FEATURES, CHOSEN_FEATURES):
        file = FeatureFile(path)
        len(file.vocabulary)
    elif path.name == FILE:
        load_sharing(path.parent)
    elif path.name == "steering.h5":
        load_steering_scores(path.parent)
    elif path.parent.name == DIRECTORY:
        read_transport(path)
    elif path.parent.name == "circuits":
        load_graph_hdf5(path)


def _check_agreement(path: Path, check: RunCheck, damaged: set[str]) -> None:
    """Check that a run's files belong to one SAE; damaged files are ignored."""

    def whole(file: Path) -> bool:
        return file.is_file() and str(file.relative_to(check.root)) not in damaged

    if not check.trying(path / CONFIG, lambda: Run(path).config):
        return
    run = Run(path)
    if not run.finished:
        _tell_missing(run, check)
    elif whole(run.weights):
        _check_weights(run, check)
        digest = run.weights_sha256
        for file, facts in _measured(run, whole):
            if facts.get("sae_sha256", digest) != digest:
                check.add(file, f"was made with other weights than {WEIGHTS}; make it again.")
    if whole(path / "provenance.json"):
        check.trying(path / "provenance.json", lambda: _check_store(run, check))


def _tell_missing(run: Run, check: RunCheck) -> None:
    made = run.made_with_weights
    if made:
        check.add(run.weights, f"is gone, with which {made} was made.")
    else:
        check.notes.append(f"{run.path} has no weights yet; its training has not finished.")


def _check_weights(run: Run, check: RunCheck) -> None:
    header, sae = read_sae_header(run.weights)
    options = run.config.sae
    if run.config.n_sites > 1 and options.joint_problem is None:
        options = options.at_widths(sae.widths)  # Training has taken them from the store.
    if sae.config.model_dump(mode="json") != options.model_dump(mode="json"):
        check.add(run.weights, f"is another SAE than {CONFIG} says.")
    for name, wanted in (("site", run.config.site), ("target_site", run.config.written_site)):
        if (found := header.metadata.get(name, wanted)) != wanted:
            check.add(run.weights, f"has the {name} {found[:60]!r}, {CONFIG} says {wanted!r}.")


def _measured(run: Run, whole: Callable[[Path], bool]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files made from the weights, and the digest that each records."""
    made = (
        run.features_path,
        run.path / "steering.h5",
        run.path / FILE,
        *transport_files(run.path),
    )
    for path in filter(whole, made):
        yield path, read_hdf5(path).facts
    told = [run.path / "evaluation", run.path / EXPLANATIONS]
    for path in sorted(file for place in told for file in place.rglob("*.json")):
        if whole(path):
            made = read_sealed_json(path).get("made")
            yield path, made if isinstance(made, dict) else {}


def _check_store(run: Run, check: RunCheck) -> None:
    recorded, old = run.provenance().get("activations"), run.config.activations
    store = now_at(old, beside(run.path))
    if store is None or not (store / "manifest.json").is_file():
        check.notes.append(f"The store {old} is not there, and was not compared.")
        return
    try:
        there = read_manifest(store).content_digest
    except UsageError as error:
        check.notes.append(f"The store was not compared: {error}")
        return
    if there != recorded:
        raise UsageError(f"is of another store than {store} is now.")

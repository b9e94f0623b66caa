"""Writing an activation store, one immutable unit at a time."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from saelab.activations.columns import Columns, column_problem
from saelab.activations.format import (
    JsonObject,
    Manifest,
    SiteSpec,
    differences,
    hook_path,
    manifest_bytes,
    read_manifest,
    tokens_path,
    write_manifest,
)
from saelab.activations.hook_file import hook_file
from saelab.activations.order import permutation
from saelab.activations.prepare import PreparedRows, RowPreparer, Rows
from saelab.activations.sealed import write_parts
from saelab.activations.space import require_space
from saelab.activations.tensor_rows import as_tensor
from saelab.activations.tokens_file import tokens_file
from saelab.activations.windows import KEPT
from saelab.config import UsageError
from saelab.files import (
    atomic_write,
    check_directory,
    fsync_directory,
    is_temporary,
    is_temporary_of,
    temporary_name,
)
from saelab.lock import Lock, other_writers
from saelab.ranks import LOCKS, Ranks


@dataclass(frozen=True)
class PreparedUnit:
    """A unit in its stored form: each site's rows, and the columns, in stored order."""

    unit: int
    rows: Mapping[str, PreparedRows]
    columns: Columns


class StoreWriter:
    """The writer of a store, or of one rank's units; a context manager that holds a lock.

        with StoreWriter.create("activations_cache/tiny", manifest) as writer:
            for unit in writer.missing_units():
                writer.write_unit(unit, {"blocks.1.hook_resid_post": rows}, columns)

    Threads may call `write_unit` at once, for different units.
    """

    def __init__(self, path: Path, manifest: Manifest, ranks: Ranks, lock: Lock) -> None:
        self.path = path
        self.manifest = manifest
        self.ranks = ranks
        self._lock = lock
        self._local = threading.local()

    @classmethod
    def create(
        cls, path: Path | str, manifest: Manifest, ranks: Ranks | None = None
    ) -> "StoreWriter":
        """Open a new store, or continue one whose manifest has the same content.

        `ranks` says which of several processes this is; None for a single process.

        Raises:
            UsageError: the store exists with another manifest (the message names the fields that
                differ), the directory holds something else, another launch is writing the store, or
                the disk has no room for what is missing.
        """
        root, ranks = Path(path), ranks or Ranks()
        check_directory(root)
        manifest = _of_its_format(root, manifest)
        _check_target(root, manifest)
        manifest = manifest.planned_in(root)
        require_space(root, manifest)
        lock = ranks.lock(root)
        try:
            _prepare(root, manifest)
        except BaseException:
            lock.release()
            raise
        return cls(root, manifest, ranks, lock)

    def missing_units(self) -> list[int]:
        """This process's uncommitted units, in order."""
        units = [unit for unit in range(self.manifest.n_units) if self.ranks.owns(unit)]
        return [unit for unit in units if not self.has(unit)]

    def has(self, unit: int) -> bool:
        """Whether a unit is committed."""
        return tokens_path(self.path, unit).exists()

    def replan(self, n_contexts: int, text: JsonObject | None = None) -> None:
        """Update the number of contexts, which becomes known while a text is read.

        With `text`, the description of what was read, the number is final; without, it is a better
        estimate. A final plan is not changed.
        """
        stored = read_manifest(self.path)
        if not stored.counted and (text is not None or n_contexts > stored.n_contexts):
            found = stored.provenance if text is None else {**stored.provenance, "text": text}
            changed = {"n_contexts": n_contexts, "provenance": found}
            atomic_write(
                self.path / "manifest.json", manifest_bytes(stored.model_copy(update=changed))
            )
        # Only this field may change: threads that write units use all others meanwhile.
        final = stored.n_contexts if stored.counted else n_contexts
        if final != self.manifest.n_contexts:
            self.manifest = self.manifest.model_copy(update={"n_contexts": final})

    def write_unit(self, unit: int, activations: Mapping[str, Rows], columns: Columns) -> None:
        """Commit one unit; `activations` has one `[row d_in]` entry per site name.

        Rows may be in any order, the same for all entries and columns; they are shuffled here. The
        unit must hold exactly the contexts `manifest.unit_contexts(unit)`.

        Raises:
            UsageError: shapes, ranges or alignment are wrong, or a value is not finite.
            OSError: the disk is full or fails; nothing of the unit remains.
        """
        self.commit(self.prepare(unit, activations, columns))

    def prepare(self, unit: int, activations: Mapping[str, Rows], columns: Columns) -> PreparedUnit:
        """The first half of `write_unit`: the unit in this thread's memory, until its next call.

        The activations are not needed afterwards.
        """
        self._check_unit(unit, activations, columns)
        order = permutation(columns.n_rows, self.manifest.seed, unit)
        rows = {}
        for site in self.manifest.sites:
            given = activations[site.name]
            rows[site.name] = self._preparer(site).prepare(given, order)
            _check_finite(rows[site.name], given, site, unit)
        return PreparedUnit(unit, rows, columns.permuted(order))

    def commit(self, prepared: PreparedUnit) -> None:
        """The second half of `write_unit`: the files."""
        unit = prepared.unit
        pending: list[tuple[Path, Path]] = []
        seals: list[bytes] = []
        try:
            for site in self.manifest.sites:
                parts, seal = hook_file(self.manifest, site, unit, prepared.rows[site.name])
                seals.append(seal)
                _write_pending(pending, hook_path(self.path, site, unit), parts)
            parts = tokens_file(self.manifest, unit, prepared.columns, seals)
            _write_pending(pending, tokens_path(self.path, unit), parts)
            _commit(pending)
        finally:
            for temporary, _ in pending:
                temporary.unlink(missing_ok=True)

    def _preparer(self, site: SiteSpec) -> RowPreparer:
        """This thread's preparer."""
        own: dict[str, RowPreparer] = self._local.__dict__
        if site.name not in own:
            own[site.name] = RowPreparer(self.manifest.dtype)
        return own[site.name]

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    def _check_unit(self, unit: int, activations: Mapping[str, Rows], columns: Columns) -> None:
        if not 0 <= unit < self.manifest.n_units:
            raise UsageError(f"Unit {unit} is outside the plan of {self.manifest.n_units} units.")
        if tokens_path(self.path, unit).exists():
            raise UsageError(f"Unit {unit} is committed already; units are never rewritten.")
        names = {site.name for site in self.manifest.sites}
        if activations.keys() != names:
            raise UsageError(
                f"Unit {unit} has activations of {sorted(activations)}, the manifest plans "
                f"{sorted(names)}."
            )
        problem = column_problem(columns, self.manifest, unit)
        if problem:
            raise UsageError(f"Unit {unit}: {problem}.")
        for site in self.manifest.sites:
            shape = tuple(activations[site.name].shape)
            if shape != (columns.n_rows, site.d_in):
                expected = (columns.n_rows, site.d_in)
                raise UsageError(
                    f"Unit {unit}: {site.name} has shape {shape}, expected {expected}."
                )

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _of_its_format(root: Path, manifest: Manifest) -> Manifest:
    """The manifest in the format of the existing store: an older store continues in its format."""
    if not (root / "manifest.json").exists():
        return manifest
    return manifest.model_copy(update={"format": read_manifest(root).format})


def _check_target(root: Path, manifest: Manifest) -> None:
    """Refuse a directory that holds another store, or anything else."""
    if (root / "manifest.json").exists():
        differing = differences(read_manifest(root), manifest)
        if differing:
            raise UsageError(f"{root} holds another store: {'; '.join(differing)}.")
    elif root.exists():
        others = [path.name for path in root.iterdir() if not _is_own(path)]
        if others:
            raise UsageError(f"{root} is no activation store and is not empty ({min(others)}).")


def _is_own(path: Path) -> bool:
    """Whether a writer without a manifest yet (killed, or just starting) may have made this."""
    if path.name in ("tokens", "hooks"):
        return not any(inner.is_file() for inner in path.rglob("*"))
    return path.name == "state" or is_temporary(path)


def _prepare(root: Path, manifest: Manifest) -> None:
    """Create the missing parts of a store, and remove files that dead writers left.

    Raises:
        UsageError: another rank of this launch has just begun a store with other content.
    """
    directories = [root / "tokens", *(root / "hooks" / site.slug for site in manifest.sites)]
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(root, directory)
    _remove_leftovers(root, root)
    if (root / KEPT).is_dir():
        _remove_leftovers(root, root / KEPT)
    if not (root / "manifest.json").exists():
        write_manifest(root, manifest)
        _check_target(root, manifest)
    for directory in (root / "hooks", root):
        fsync_directory(directory)


def _remove_leftovers(root: Path, directory: Path) -> None:
    """Remove temporary files of writers that hold no lock, so are dead."""
    temporaries = [path for path in directory.iterdir() if is_temporary(path)]
    writers = other_writers((root / "state").glob(LOCKS))
    for path in temporaries:
        if not any(is_temporary_of(path, *writer) for writer in writers):
            path.unlink(missing_ok=True)


def _check_finite(prepared: PreparedRows, given: Rows, site: SiteSpec, unit: int) -> None:
    """Refuse rows with a value that is NaN or infinite, or becomes so in the stored dtype."""
    if prepared.sums.finite:
        return
    n_given = int((~torch.isfinite(as_tensor(given))).sum())
    n_stored = int((~torch.isfinite(prepared.rows)).sum())
    if n_given:
        raise UsageError(f"Unit {unit}: {n_given} values of {site.name} are NaN or infinite.")
    dtype = prepared.rows.dtype
    raise UsageError(
        f"Unit {unit}: {n_stored} values of {site.name} are beyond the range of {dtype}; "
        "store them as bfloat16 or float32."
    )


def _write_pending(
    pending: list[tuple[Path, Path]], path: Path, parts: list[memoryview | bytes]
) -> None:
    temporary = temporary_name(path)
    pending.append((temporary, path))
    write_parts(temporary, parts)


def _commit(pending: list[tuple[Path, Path]]) -> None:
    """Give all files their final names, the commit marker last; each directory is made durable."""
    *hooks, marker = pending
    for temporary, path in hooks:
        temporary.replace(path)
    for _, path in hooks:
        fsync_directory(path.parent)
    temporary, path = marker
    temporary.replace(path)
    fsync_directory(path.parent)

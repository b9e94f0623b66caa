"""Reading an activation store."""

import difflib
import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Integer

from saelab.activations.checks import check_trailer
from saelab.activations.columns import Columns
from saelab.activations.format import (
    BLOCK_ROWS,
    UNIT_FILE,
    DamagedStoreError,
    Manifest,
    hook_path,
    read_manifest,
    tokens_path,
)
from saelab.activations.joint import AnySite, JointSite
from saelab.activations.order import Blocks, permutation
from saelab.activations.outliers import Outliers, find_outliers
from saelab.activations.sealed import SealedFile
from saelab.activations.site import SiteView
from saelab.activations.tokens_file import read_tokens_file
from saelab.config import UsageError
from saelab.sites import parts_of

SAMPLED_BLOCKS = 64
"""Smallest number of blocks that a sample comes from, if there are as many."""


class ActivationStore:
    """A store opened for reading; any number of readers may run beside one writer.

    A reader sees the units committed when it opened the store. Opening reads the manifest and the
    end of each commit marker; `site` checks the headers of its files.

    Attributes:
        beside: further stores of the same tokens, whose sites `site` joins to its own.
        units: the committed units, in order.
        unit_rows: number of rows of each unit.
        sites: names of the sites.
    """

    def __init__(self, path: Path | str, *, beside: Sequence[Path] = ()) -> None:
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)
        self.sites: tuple[str, ...] = tuple(site.name for site in self.manifest.sites)
        self._named = frozenset(self.sites)
        self.units: tuple[int, ...] = committed_units(self.path, self.manifest)
        self._committed = frozenset(self.units)
        markers = [self._marker(unit) for unit in self.units]
        self.unit_rows: tuple[int, ...] = tuple(rows for rows, _ in markers)
        self._seals = b"".join(seal for _, seal in markers)
        self._views: dict[str, JointSite] = {}
        self._alone: dict[str, SiteView] = {}
        self._outliers: dict[str, Outliers] = {}
        self.beside = tuple(ActivationStore(other) for other in beside)
        for number, other in enumerate(self.beside):
            _check_same_tokens(self, other)
            for before in (self, *self.beside[:number]):
                _check_differs(before, other)

    def _marker(self, unit: int) -> tuple[int, bytes]:
        """A unit's number of rows, and the seal of all its files."""
        with SealedFile(tokens_path(self.path, unit)) as file:
            check_trailer(file, self.manifest, unit)
            return file.trailer.rows, file.seal

    @property
    def rows_digest(self) -> str:
        """sha256 (hex) over the seals of the committed units; equal digests mean equal values."""
        return hashlib.sha256(self._seals).hexdigest()

    @property
    def n_rows(self) -> int:
        """Number of rows of the committed units."""
        return sum(self.unit_rows)

    @property
    def complete(self) -> bool:
        """Whether all planned units are committed."""
        return self.manifest.counted and len(self.units) == self.manifest.n_units

    @cached_property
    def blocks(self) -> Blocks:
        """The blocks of all committed units; the same for every site."""
        if not self.units:
            raise UsageError(f"{self.path} has no committed unit yet.")
        return Blocks.of_units(self.unit_rows, BLOCK_ROWS)

    def site(self, name: str) -> AnySite:
        """The rows of one site, or of several as one: see `saelab.activations.joint`.

        Raises:
            UsageError: the store has no such site; the message lists its sites, the most similar
                first.
            DamagedStoreError: a header of the site is damaged.
        """
        members = self.members(name)
        if len(members) == 1:
            return self.one_site(name)
        if name not in self._views:
            parts = [store.one_site(hook) for store, hook in members]
            # Massive rows would decide a site's scale, and say nothing about its other rows.
            sums = [store.outliers(hook).kept for store, hook in members]
            self._views[name] = JointSite(parts, sums, self.blocks, self.sample_rows)
        return self._views[name]

    def members(self, name: str) -> list[tuple["ActivationStore", str]]:
        """The stores and hooks whose rows are a site's.

        Raises:
            UsageError: a hook is named twice.
        """
        hooks = parts_of(name)
        if len(set(hooks)) < len(hooks):
            raise UsageError(f"The site {name} names a hook twice; name each once.")
        return [(store, hook) for store in (self, *self.beside) for hook in hooks]

    def one_site(self, name: str) -> SiteView:
        """The rows of one site of this store alone; raises as `site` does."""
        if name not in self._named:
            nearest = difflib.get_close_matches(name, self.sites, len(self.sites), cutoff=0)
            raise UsageError(f"{self.path} has no site {name!r}; it has {', '.join(nearest)}.")
        if name not in self._alone:
            spec = self.manifest.site(name)
            paths = {unit: hook_path(self.path, spec, unit) for unit in self.units}
            self._alone[name] = SiteView(
                self.path, self.manifest, spec, self.blocks, paths, self.sample_rows
            )
        return self._alone[name]

    def outliers(self, name: str) -> Outliers:
        """The massive rows of one site, computed once; raises as `site` does."""
        if name not in self._outliers:
            self._outliers[name] = find_outliers(self.one_site(name))
        return self._outliers[name]

    def sample_rows(self, n: int, seed: int) -> Int[np.ndarray, " n"]:
        """Store-order indices of `n` distinct random rows, in random order, from few blocks.

        Raises:
            UsageError: the store has fewer rows.
        """
        if n > self.n_rows:
            raise UsageError(f"A sample of {n} rows was asked of a store with {self.n_rows}.")
        order = permutation(len(self.blocks.count), seed)
        enough = int(np.searchsorted(np.cumsum(self.blocks.count[order]), n)) + 1
        chosen = order[: max(enough, SAMPLED_BLOCKS)]
        starts, counts = self.blocks.start[chosen], self.blocks.count[chosen]
        rows = np.concatenate([np.arange(s, s + c) for s, c in zip(starts, counts, strict=True)])
        return rows[permutation(len(rows), seed, 1)[:n]]

    def tokens(self, unit: int) -> Columns:
        """Token, position, context, document and labels of a unit's rows, in store order."""
        if unit not in self._committed:
            raise UsageError(f"{self.path} has no committed unit {unit}.")
        with SealedFile(tokens_path(self.path, unit)) as file:
            return read_tokens_file(file, self.manifest, unit).columns

    def row_labels(
        self, rows: Int[np.ndarray, " n"]
    ) -> tuple[Integer[np.ndarray, " n"], Bool[np.ndarray, "n label"] | None]:
        """The context and the labels of the rows at these store-order indices."""
        context = np.empty(len(rows), dtype=np.int64)
        n_labels = len(self.manifest.label_names)
        labels = np.empty((len(rows), n_labels), dtype=bool) if n_labels else None
        for here, columns, inside in self._columns_of(rows):
            context[here] = columns.context[inside]
            if labels is not None and columns.labels is not None:
                labels[here] = columns.labels[inside]
        return context, labels

    def row_tokens(
        self, rows: Int[np.ndarray, " n"]
    ) -> tuple[Integer[np.ndarray, " n"], Integer[np.ndarray, " n"]]:
        """The token id (`NO_TOKEN` if not text) and the position of the rows at these indices."""
        token, position = (np.empty(len(rows), dtype=np.int64) for _ in range(2))
        for here, columns, inside in self._columns_of(rows):
            token[here], position[here] = columns.token[inside], columns.position[inside]
        return token, position

    def _columns_of(
        self, rows: Int[np.ndarray, " n"]
    ) -> Iterator[tuple[Int[np.ndarray, " k"], Columns, Int[np.ndarray, " k"]]]:
        """For each unit with some of these rows: which, its columns, and the rows' places there."""
        first = np.cumsum([0, *self.unit_rows])
        owner = np.searchsorted(first, rows, side="right") - 1
        for number in np.unique(owner):
            here = np.flatnonzero(owner == number)
            yield here, self.tokens(self.units[number]), rows[here] - first[number]

    def contexts(self) -> Iterator[tuple[int, Integer[np.ndarray, "context pos"]]]:
        """For each unit: the index of its first context, and its contexts' token ids."""
        for unit in self.units:
            yield self.manifest.unit_contexts(unit).start, self.tokens(unit).contexts


def _check_same_tokens(store: ActivationStore, other: ActivationStore) -> None:
    """Refuse a second store whose rows are not of the same tokens in the same order.

    Raises:
        UsageError: names the stores and what differs.
    """
    remedy = "harvest both with the same --text, --n-tokens, --context-length and --seed"
    if (store.units, store.unit_rows) != (other.units, other.unit_rows):
        raise UsageError(
            f"{other.path} has {other.n_rows} rows in {len(other.units)} units and {store.path} "
            f"{store.n_rows} in {len(store.units)}, so they are not of the same tokens; {remedy}."
        )
    for unit in store.units:
        one, two = store.tokens(unit), other.tokens(unit)
        for name in ("contexts", "token", "position", "context"):
            if not np.array_equal(getattr(one, name), getattr(two, name)):
                raise UsageError(
                    f"Unit {unit} of {other.path} is of other tokens than that of {store.path}; "
                    f"{remedy}."
                )


def _check_differs(store: ActivationStore, other: ActivationStore) -> None:
    """Refuse a store beside itself or its copy: it would be compared with itself."""
    if store.rows_digest == other.rows_digest:
        raise UsageError(
            f"{other.path} has the same activations as {store.path}; give each store once, and "
            "beside it one of another model."
        )


def committed_units(root: Path, manifest: Manifest) -> tuple[int, ...]:
    """The units with a commit marker, in order.

    Raises:
        DamagedStoreError: a directory is missing or a symbolic link, or a unit is outside the plan.
    """
    slugs = [root / "hooks" / site.slug for site in manifest.sites]
    for directory in (root / "tokens", root / "hooks", *slugs):
        if directory.is_symlink() or not directory.is_dir():
            raise DamagedStoreError(f"{directory} is missing, or is not a plain directory.")
    names = [path.name for path in (root / "tokens").iterdir()]
    units = sorted(int(name[:6]) for name in names if UNIT_FILE.fullmatch(name))
    if not manifest.counted:
        # The manifest's plan may have been an estimate that has grown since.
        units = [unit for unit in units if unit < manifest.n_units]
    if units and units[-1] >= manifest.n_units:
        path = tokens_path(root, units[-1])
        raise DamagedStoreError(f"{path} is outside the plan of {manifest.n_units} units.")
    return tuple(units)

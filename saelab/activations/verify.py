"""Finding any damage in a store."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from saelab.activations.columns import column_problem
from saelab.activations.format import (
    BLOCK_ROWS,
    UNIT_FILE,
    DamagedStoreError,
    Manifest,
    SiteSpec,
    hook_path,
    read_manifest,
    tokens_path,
    unit_file,
)
from saelab.activations.hook_file import HookHeader, read_hook_header, read_payload, row_bytes
from saelab.activations.sealed import SealedFile
from saelab.activations.statistics import merged
from saelab.activations.store import ActivationStore, committed_units
from saelab.activations.summing import summed
from saelab.activations.tensor_rows import rows_from_bytes
from saelab.activations.tokens_file import TokensFile, read_tokens_file
from saelab.activations.windows import KEPT, read_shard

STATISTICS_TOLERANCE = 1e-9
NORM_TOLERANCE = 1e-5
"""Norms are float32, and a GPU sums them in another order."""
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Damage:
    """One fault in one file."""

    file: str
    """Path relative to the store."""
    problem: str


def verify(
    path: Path | str, *, full: bool = True, progress: Progress = lambda n_bytes: None
) -> list[Damage]:
    """All damage in a store; an empty list means that it is whole and complete.

    It checks the manifest, the set of files, every byte of every header and token column against
    its seal, the alignment of the columns, and that the hook files belong to their tokens file.
    With `full`, it also checks every block of activations against its checksum, and the statistics
    against the rows. `progress` is called with the number of bytes of each file checked.

    Raises:
        UsageError: there is no store at `path`.
    """
    root = Path(path)
    try:
        manifest = read_manifest(root)
    except DamagedStoreError as error:
        return [_damage(root, root / "manifest.json", error)]
    try:
        units = committed_units(root, manifest)
    except DamagedStoreError as error:
        return [_damage(root, root / "tokens", error)]
    found = [*_missing(manifest, units), *_foreign(root, manifest)]
    for unit in units:
        found += _unit_damage(root, manifest, unit, full=full, progress=progress)
    return [*found, *_text_damage(root)]


def check_markers(store: ActivationStore, sites: Iterable[str]) -> None:
    """Refuse a store whose token files are damaged or do not belong to its sites' files.

    The activations themselves are checked when they are read.

    Raises:
        DamagedStoreError: the message names the first such file.
    """
    manifest = store.manifest
    places = {s.name: i for i, s in enumerate(manifest.sites)}
    for unit in store.units:
        content = _check_tokens(tokens_path(store.path, unit), manifest, unit)
        for name in sites:
            with SealedFile(hook_path(store.path, manifest.site(name), unit)) as file:
                if file.seal != content.seals[places[name]]:
                    raise file.damaged("is not the file that was written with its tokens file")


def _text_damage(root: Path) -> Iterator[Damage]:
    """What is wrong with the kept tokens of the text."""
    for path in sorted((root / KEPT).glob("*.tokens")):
        try:
            read_shard(path, None)
        except DamagedStoreError as error:
            yield _damage(root, path, error)


def _damage(root: Path, path: Path, error: DamagedStoreError) -> Damage:
    problem = str(error).removeprefix(str(path)).strip()
    return Damage(str(path.relative_to(root)), problem)


def _missing(manifest: Manifest, units: tuple[int, ...]) -> Iterator[Damage]:
    """The planned units without a commit marker, one entry per run of consecutive units."""
    have = np.zeros(manifest.n_units + 2, dtype=np.int8)
    have[0] = have[-1] = 1
    have[np.asarray(units, dtype=np.int64) + 1] = 1
    steps = np.diff(have)
    for first, end in zip(np.flatnonzero(steps == -1), np.flatnonzero(steps == 1), strict=True):
        behind = "" if end == first + 1 else f" (and up to {unit_file(int(end) - 1)})"
        problem = f"is missing{behind}: continue the harvest by running it again."
        yield Damage(f"tokens/{unit_file(int(first))}", problem)


def _foreign(root: Path, manifest: Manifest) -> Iterator[Damage]:
    """Entries that do not belong to the format; a running writer's temporary files are allowed."""
    slugs = {site.slug for site in manifest.sites}
    yield from _unexpected(root, root / "hooks", lambda name: name in slugs)
    for directory in (root / "tokens", *(root / "hooks" / slug for slug in sorted(slugs))):
        yield from _unexpected(
            root,
            directory,
            lambda name: UNIT_FILE.fullmatch(name) is not None and int(name[:6]) < manifest.n_units,
        )


def _unexpected(root: Path, directory: Path, belongs: Callable[[str], bool]) -> Iterator[Damage]:
    for path in sorted(directory.iterdir()):
        temporary = path.name.startswith(".") and path.name.endswith(".tmp")
        if not belongs(path.name) and not temporary:
            yield Damage(str(path.relative_to(root)), "does not belong to the store.")


def _unit_damage(
    root: Path, manifest: Manifest, unit: int, *, full: bool, progress: Progress
) -> Iterator[Damage]:
    content: TokensFile | None = None
    path = tokens_path(root, unit)
    try:
        content = _check_tokens(path, manifest, unit)
    except DamagedStoreError as error:
        yield _damage(root, path, error)
    progress(_size(path))
    for index, site in enumerate(manifest.sites):
        path = hook_path(root, site, unit)
        try:
            with SealedFile(path) as file:
                header = read_hook_header(file, manifest, site, unit)
                if content is not None:
                    _check_belongs(file, header, content, index)
                if full:
                    _check_payload(file, manifest, site, header)
        except DamagedStoreError as error:
            yield _damage(root, path, error)
        progress(_size(path))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check_tokens(path: Path, manifest: Manifest, unit: int) -> TokensFile:
    with SealedFile(path) as file:
        content = read_tokens_file(file, manifest, unit)
        problem = column_problem(content.columns, manifest, unit)
        if problem:
            raise file.damaged(f"is misaligned: {problem}")
        return content


def _check_belongs(file: SealedFile, header: HookHeader, content: TokensFile, index: int) -> None:
    """Check that the hook file was written together with its tokens file."""
    if header.rows != content.columns.n_rows:
        raise file.damaged(f"has {header.rows} rows, its tokens file {content.columns.n_rows}")
    if header.seal != content.seals[index]:
        raise file.damaged("is not the file that was written with its tokens file")


def _check_payload(
    file: SealedFile, manifest: Manifest, site: SiteSpec, header: HookHeader
) -> None:
    """Compare every block with its checksum, and the recorded sums with the rows' sums."""
    parts = []
    for first in range(0, header.rows, BLOCK_ROWS):
        count = min(BLOCK_ROWS, header.rows - first)
        raw = torch.empty(count * row_bytes(manifest, site), dtype=torch.uint8)
        read_payload(file, header, first, raw.numpy().data, check=True)
        parts.append(summed(rows_from_bytes(raw, manifest.dtype, site.d_in)))
    sums = merged([each for each, _ in parts])
    norms = np.concatenate([each for _, each in parts])
    scale = np.sqrt(sums.n * sums.sum_sq)
    if not (
        np.allclose(sums.sum_sq, header.sums.sum_sq, rtol=STATISTICS_TOLERANCE, atol=0)
        and (np.abs(sums.sum - header.sums.sum) <= STATISTICS_TOLERANCE * scale).all()
        and sums.max_abs == header.sums.max_abs
    ) or (header.norms is not None and header.norms.differs(norms, NORM_TOLERANCE)):
        raise file.damaged("has statistics that are not those of its rows")

"""The size of a store, and whether the disk has room for it."""

from pathlib import Path

from saelab.activations.dtypes import itemsize
from saelab.activations.format import BLOCK_ROWS, UNIT_FILE, Manifest
from saelab.activations.norms import N_BINS, tail_size
from saelab.activations.parallel import WRITERS
from saelab.config import UsageError
from saelab.console import in_bytes
from saelab.resources import free_bytes

HEADER_BYTES = 24 * 1024
"""An upper limit for HDF5 metadata, attributes, alignment and trailer of one file."""
COLUMN_BYTES = 4 + 2 + 4 + 8
CONTEXT_TOKEN_BYTES = 4


def predicted_bytes(manifest: Manifest, rows: int | None = None) -> int:
    """Bytes of the complete store; `rows` defaults to one per position of each context."""
    positions = manifest.n_contexts * manifest.context_length
    rows = positions if rows is None else rows
    width = sum(site.d_in for site in manifest.sites)
    row_bytes = width * itemsize(manifest.dtype) + COLUMN_BYTES
    row_bytes += -(-len(manifest.label_names) // 8)
    checksums = 8 * len(manifest.sites) * (rows // BLOCK_ROWS + manifest.n_units)
    checksums += 8 * len(manifest.sites) * (tail_size(rows) + manifest.n_units)
    per_unit = (
        HEADER_BYTES * (len(manifest.sites) + 1) + 16 * width + 4 * N_BINS * len(manifest.sites)
    )
    contexts = CONTEXT_TOKEN_BYTES * positions
    return rows * row_bytes + contexts + checksums + per_unit * manifest.n_units


def unit_memory(manifest: Manifest) -> int:
    """Bytes of memory that recording needs beside the model: see `BackgroundWriter`."""
    widths = [site.d_in for site in manifest.sites]
    return (2 * WRITERS + 1) * sum(widths) * itemsize(manifest.dtype) * manifest.max_rows


def missing_units(root: Path, manifest: Manifest) -> int:
    """Number of units that the store at `root` lacks; the store need not exist."""
    tokens = root / "tokens"
    names = [path.name for path in tokens.iterdir()] if tokens.is_dir() else []
    committed = sum(UNIT_FILE.fullmatch(name) is not None for name in names)
    return max(0, manifest.n_units - committed)


def require_space(root: Path, manifest: Manifest, rows: int | None = None) -> int:
    """Bytes that the missing part of the store at `root` will take, after a check that they fit.

    Raises:
        UsageError: its disk has less free space.
    """
    needed = predicted_bytes(manifest, rows) * missing_units(root, manifest) // manifest.n_units
    free = free_bytes(root)
    if needed > free:
        raise UsageError(
            f"{root} needs {in_bytes(needed)}, its disk has {in_bytes(free)} free; harvest fewer "
            "tokens or sites, choose a smaller dtype, or another disk."
        )
    return needed

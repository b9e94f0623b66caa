"""Norm records for stores whose hook files have none: computed once, kept in `stats/`."""

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from saelab.activations.norms import N_BINS, NormRecord, tail_size
from saelab.console import progress
from saelab.files import atomic_write

NAMES = tuple(field.name for field in fields(NormRecord))


def kept_records(
    path: Path,
    *,
    seals: Sequence[bytes],
    rows: Sequence[int],
    scan: Callable[[int], Float32[np.ndarray, " row"]],
) -> tuple[NormRecord, ...]:
    """The record of each unit, from `path` if it was made from the files with these seals.

    Otherwise `scan` gives the norms of a unit, and `path` is written. A read-only store is scanned
    each time.
    """
    digest = hashlib.sha256(b"".join(seals)).hexdigest()
    if (found := _read(path, digest, rows)) is not None:
        return found
    records = []
    with progress("Read norms", sum(rows), "rows") as bar:
        for unit, n in enumerate(rows):
            records.append(NormRecord.of(scan(unit)))
            bar.advance(n)
    with contextlib.suppress(OSError):
        atomic_write(path, save(_stacked(records), {"seals": digest}))
    return tuple(records)


def _stacked(records: Sequence[NormRecord]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([getattr(record, name) for record in records]) for name in NAMES}


def _read(path: Path, digest: str, rows: Sequence[int]) -> tuple[NormRecord, ...] | None:
    """The records kept at `path`; None unless they are whole and of these files."""
    if path.is_symlink() or not path.is_file():
        return None
    sizes = [tail_size(n) for n in rows]
    try:
        with safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("seals") != digest:
                return None
            counts, *tails = (file.get_tensor(name) for name in NAMES)
    except (SafetensorError, OSError):
        return None
    if [a.dtype for a in (counts, *tails)] != [np.uint32, np.uint32, np.float32]:
        return None
    if counts.shape != (len(rows) * N_BINS,) or any(t.shape != (sum(sizes),) for t in tails):
        return None
    cuts = np.cumsum(sizes)[:-1]
    parts = zip(counts.reshape(-1, N_BINS), *(np.split(t, cuts) for t in tails), strict=True)
    records = tuple(NormRecord(*part) for part in parts)
    sound = all(r.problem(n) is None for r, n in zip(records, rows, strict=True))
    return records if sound else None

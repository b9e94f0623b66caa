"""One unit's columns, and its commit marker: `tokens/NNNNNN.h5`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import h5py
import numpy as np
from jaxtyping import Shaped

from saelab.activations.checks import DatasetSpec, check_trailer, checked_hdf5, read_dataset
from saelab.activations.columns import STORED, Columns, pack_labels, unpack_labels
from saelab.activations.format import Manifest
from saelab.activations.hdf5_layout import build_image
from saelab.activations.sealed import SEAL_BYTES, SealedFile, seal_file

EXCLUDED = "excluded"


@dataclass(frozen=True)
class TokensFile:
    """A unit's columns, and the seals of its hook files in the order of the manifest's sites."""

    columns: Columns
    seals: tuple[bytes, ...]


def tokens_file(
    manifest: Manifest, unit: int, columns: Columns, seals: Sequence[bytes]
) -> list[memoryview | bytes]:
    """The parts of the file in order."""
    datasets: dict[str, Shaped[np.ndarray, ...]] = {
        name: getattr(columns, name).astype(kind) for name, kind in STORED.items()
    }
    if columns.labels is not None:
        datasets["labels"] = pack_labels(columns.labels)
    datasets["seals"] = np.frombuffer(b"".join(seals), dtype=np.uint8).reshape(-1, SEAL_BYTES)
    identity = tokens_identity(manifest, unit, columns.n_rows)
    excluded = json.dumps(dict(columns.excluded), sort_keys=True)
    image = build_image({**identity, EXCLUDED: excluded}, datasets)
    digest = manifest.content_digest
    return seal_file(image, b"", unit=unit, rows=columns.n_rows, content_digest=digest)[0]


def tokens_identity(manifest: Manifest, unit: int, rows: int) -> dict[str, str | int]:
    """The attributes that say which file this is."""
    return {
        "format": manifest.format,
        "content_digest": manifest.content_digest,
        "unit": unit,
        "rows": rows,
    }


def tokens_datasets(manifest: Manifest, unit: int, rows: int) -> dict[str, DatasetSpec]:
    """The datasets of a tokens file with this many rows."""
    contexts = (len(manifest.unit_contexts(unit)), manifest.context_length)
    datasets = {
        name: DatasetSpec(
            contexts if name == "contexts" else (rows,), h5py.h5t.py_create(np.dtype(kind))
        )
        for name, kind in STORED.items()
    }
    if manifest.label_names:
        packed = (rows, -(-len(manifest.label_names) // 8))
        datasets["labels"] = DatasetSpec(packed, h5py.h5t.STD_U8LE)
    datasets["seals"] = DatasetSpec((len(manifest.sites), SEAL_BYTES), h5py.h5t.STD_U8LE)
    return datasets


def read_tokens_file(file: SealedFile, manifest: Manifest, unit: int) -> TokensFile:
    """The content of a tokens file, after all checks.

    Raises:
        DamagedStoreError: the file is damaged, or belongs to another unit or store.
    """
    check_trailer(file, manifest, unit)
    rows = file.trailer.rows
    if file.trailer.payload_bytes:
        raise file.damaged("has a payload, which a tokens file has not")
    datasets = tokens_datasets(manifest, unit, rows)
    identity = tokens_identity(manifest, unit, rows)
    with checked_hdf5(file, datasets, identity, also={EXCLUDED}) as hdf5:
        values = {name: read_dataset(hdf5, name) for name in datasets}
        excluded = hdf5.attrs[EXCLUDED]
    return TokensFile(
        Columns(
            **{name: values[name] for name in STORED},
            labels=unpack_labels(values["labels"], len(manifest.label_names))
            if manifest.label_names
            else None,
            excluded=_excluded(file, excluded),
        ),
        tuple(seal.tobytes() for seal in values["seals"]),
    )


def _excluded(file: SealedFile, raw: object) -> dict[str, int]:
    """The counts of excluded positions, from the attribute's JSON."""
    try:
        counts = json.loads(raw) if isinstance(raw, bytes | str) else None
    except (ValueError, RecursionError):
        counts = None
    if not isinstance(counts, dict) or not all(type(n) is int for n in counts.values()):
        raise file.damaged("has an attribute 'excluded' that is not a JSON object of counts")
    return counts

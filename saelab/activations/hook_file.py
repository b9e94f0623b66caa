"""One unit's rows of one site: `hooks/<slug>/NNNNNN.h5`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import h5py
import numpy as np
from jaxtyping import UInt64

from saelab.activations.checks import (
    DatasetSpec,
    check_trailer,
    checked_hdf5,
    read_dataset,
    read_number,
)
from saelab.activations.dtypes import hdf5_type, itemsize
from saelab.activations.format import BLOCK_ROWS, Manifest, SiteSpec
from saelab.activations.hdf5_layout import PayloadSpec, build_image
from saelab.activations.norms import N_BINS, NormRecord, tail_size
from saelab.activations.sealed import SealedFile, checksum, seal_file
from saelab.activations.statistics import ColumnSums

if TYPE_CHECKING:
    from saelab.activations.prepare import PreparedRows

U64, F64 = h5py.h5t.STD_U64LE, h5py.h5t.IEEE_F64LE
U32, F32 = h5py.h5t.STD_U32LE, h5py.h5t.IEEE_F32LE


@dataclass(frozen=True)
class HookHeader:
    """What a hook file records about its payload; `norms` is None in a store of format 1."""

    rows: int
    payload_offset: int
    xxh3: UInt64[np.ndarray, " block"]
    sums: ColumnSums
    seal: bytes
    norms: NormRecord | None


def row_bytes(manifest: Manifest, site: SiteSpec) -> int:
    """Bytes per stored row."""
    return itemsize(manifest.dtype) * site.d_in


def hook_file(
    manifest: Manifest, site: SiteSpec, unit: int, prepared: "PreparedRows"
) -> tuple[list[memoryview | bytes], bytes]:
    """The parts of the file in order, and its seal."""
    rows, sums = prepared.rows, prepared.sums
    identity = hook_identity(manifest, site, unit, len(rows))
    datasets = {
        "xxh3": prepared.xxh3,
        "sum": sums.sum,
        "sum_sq": sums.sum_sq,
        **(vars(NormRecord.of(prepared.norms)) if manifest.records_norms else {}),
    }
    spec = PayloadSpec("acts", (len(rows), site.d_in), hdf5_type(manifest.dtype))
    image = build_image({**identity, "max_abs": sums.max_abs}, datasets, spec)
    digest = manifest.content_digest
    return seal_file(image, prepared.payload, unit=unit, rows=len(rows), content_digest=digest)


def hook_identity(manifest: Manifest, site: SiteSpec, unit: int, rows: int) -> dict[str, str | int]:
    """The attributes that identify this file."""
    return {
        "format": manifest.format,
        "content_digest": manifest.content_digest,
        "unit": unit,
        "rows": rows,
        "hook": site.hook,
        "kind": site.kind,
        "block_rows": BLOCK_ROWS,
    }


def hook_datasets(manifest: Manifest, site: SiteSpec, rows: int) -> dict[str, DatasetSpec]:
    """The datasets of a hook file with this many rows."""
    datasets = {
        "acts": DatasetSpec((rows, site.d_in), hdf5_type(manifest.dtype)),
        "xxh3": DatasetSpec((-(-rows // BLOCK_ROWS),), U64),
        "sum": DatasetSpec((site.d_in,), F64),
        "sum_sq": DatasetSpec((site.d_in,), F64),
    }
    if manifest.records_norms:
        datasets["norm_counts"] = DatasetSpec((N_BINS,), U32)
        datasets["tail_row"] = DatasetSpec((tail_size(rows),), U32)
        datasets["tail_norm"] = DatasetSpec((tail_size(rows),), F32)
    return datasets


def read_hook_header(file: SealedFile, manifest: Manifest, site: SiteSpec, unit: int) -> HookHeader:
    """The header of a hook file, after every check except those of the payload's blocks.

    Raises:
        DamagedStoreError: the file is damaged, or belongs to another site, unit or store.
    """
    check_trailer(file, manifest, unit)
    trailer = file.trailer
    if trailer.payload_bytes != trailer.rows * row_bytes(manifest, site):
        raise file.damaged("declares a payload of another size than its rows have")
    datasets = hook_datasets(manifest, site, trailer.rows)
    identity = hook_identity(manifest, site, unit, trailer.rows)
    with checked_hdf5(file, datasets, identity, also={"max_abs"}) as hdf5:
        if h5py.h5d.open(hdf5.id, b"acts").get_offset() != trailer.payload_offset:
            raise file.damaged("has its payload elsewhere than its trailer says")
        sums = ColumnSums(
            trailer.rows,
            read_dataset(hdf5, "sum"),
            read_dataset(hdf5, "sum_sq"),
            read_number(hdf5, "max_abs"),
        )
        xxh3 = read_dataset(hdf5, "xxh3")
        norms = _norms(file, hdf5) if manifest.records_norms else None
    return HookHeader(trailer.rows, trailer.payload_offset, xxh3, sums, file.seal, norms)


def _norms(file: SealedFile, hdf5: h5py.File) -> NormRecord:
    record = NormRecord(
        *(read_dataset(hdf5, name) for name in ("norm_counts", "tail_row", "tail_norm"))
    )
    if problem := record.problem(file.trailer.rows):
        raise file.damaged(problem)
    return record


def read_payload(
    file: SealedFile, header: HookHeader, first: int, out: memoryview, *, check: bool
) -> None:
    """Read the block that starts at row `first` into `out`, which has the block's size.

    Raises:
        DamagedStoreError: `check` is set, and the bytes do not match the block's checksum.
    """
    width = file.trailer.payload_bytes // header.rows
    file.read_into(header.payload_offset + first * width, out)
    number = first // BLOCK_ROWS
    if check and checksum(out) != header.xxh3[number]:
        raise file.damaged(f"is damaged in block {number}, which starts at row {first}")

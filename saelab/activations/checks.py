"""Refusing HDF5 files with anything but the few plain datasets of a store's file.

A store may come from anybody, and an HDF5 file can point at other files (external links, external
storage, virtual datasets), load plug-ins (filters) or declare sizes that it does not have. No
object of a file is opened before its kind is known to be harmless.
"""

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass

import h5py
import numpy as np
from jaxtyping import Shaped

from saelab.activations.format import DamagedStoreError, Manifest
from saelab.activations.sealed import SealedFile

MAX_ATTRIBUTE_BYTES = 2**16


@dataclass(frozen=True)
class DatasetSpec:
    """The exact properties of a dataset."""

    shape: tuple[int, ...]
    type: h5py.h5t.TypeID


def check_trailer(file: SealedFile, manifest: Manifest, unit: int) -> None:
    """Check what can be checked of a file before its HDF5 part is parsed.

    Raises:
        DamagedStoreError: the file belongs to another store or unit, or declares impossible sizes.
    """
    trailer = file.trailer
    if trailer.content_digest != bytes.fromhex(manifest.content_digest):
        raise file.damaged("belongs to a store with another manifest")
    if trailer.unit != unit:
        raise file.damaged(f"holds unit {trailer.unit}: it was renamed or swapped")
    if not 0 < trailer.rows <= manifest.max_rows:
        raise file.damaged(f"declares {trailer.rows} rows; a unit has 1 to {manifest.max_rows}")


@contextmanager
def checked_hdf5(
    file: SealedFile,
    datasets: Mapping[str, DatasetSpec],
    identity: Mapping[str, str | int],
    *,
    also: Set[str],
) -> Iterator[h5py.File]:
    """The HDF5 part, after its seal, structure and identity were checked.

    Members and attributes are exactly `datasets` and `identity` with `also`. Members are hard links
    to contiguous, unfiltered, internal datasets of the expected dtype and shape, inside the file.

    Raises:
        DamagedStoreError: something differs, or HDF5 cannot read the file.
    """
    file.check_seal()
    try:
        with file.hdf5() as hdf5:
            problem = _members_problem(hdf5, datasets)
            problem = problem or _attributes_problem(hdf5, {*identity, *also})
            problem = problem or _identity_problem(hdf5, identity)
            for name, spec in datasets.items():
                problem = problem or _dataset_problem(hdf5, name, spec, file.size)
            if problem:
                raise file.damaged(problem)
            yield hdf5
    except DamagedStoreError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise file.damaged(f"is not a readable HDF5 file ({error})") from None


def read_dataset(file: h5py.File, name: str) -> Shaped[np.ndarray, "..."]:
    """A small dataset, read whole, of a file whose structure was checked."""
    dataset = file[name]
    assert isinstance(dataset, h5py.Dataset)
    return dataset[()]


def read_number(file: h5py.File, name: str) -> float:
    """A number in an attribute of a file whose structure was checked."""
    return float(np.asarray(file.attrs[name]))


def _members_problem(file: h5py.File, datasets: Mapping[str, DatasetSpec]) -> str | None:
    if len(file) != len(datasets):
        return f"has {len(file)} members where {len(datasets)} are expected"
    unexpected = sorted(set(file) - set(datasets))
    if unexpected:
        return f"has an unexpected member {unexpected[0]!r}"
    for name in datasets:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            return f"member {name!r} is a link to somewhere else"
        if file.get(name, getclass=True) is not h5py.Dataset:
            return f"member {name!r} is not a dataset"
    return None


def _dataset_problem(file: h5py.File, name: str, spec: DatasetSpec, size: int) -> str | None:
    dataset = h5py.h5d.open(file.id, name.encode())
    plist = dataset.get_create_plist()
    if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_nfilters() > 0:
        return f"dataset {name!r} is not stored plainly (virtual, chunked, compact or filtered)"
    if plist.get_external_count() > 0:
        return f"dataset {name!r} is stored in another file"
    if not dataset.get_type().equal(spec.type):
        return f"dataset {name!r} has an unexpected type"
    if dataset.shape != spec.shape:
        return f"dataset {name!r} has shape {dataset.shape}, expected {spec.shape}"
    offset, nbytes = dataset.get_offset(), spec.type.get_size()
    for extent in spec.shape:
        nbytes *= extent
    if offset is None or offset + nbytes > size:
        return f"dataset {name!r} does not lie inside the file"
    return None


def _attributes_problem(file: h5py.File, attributes: Set[str]) -> str | None:
    if h5py.h5a.get_num_attrs(file.id) != len(attributes):
        return f"does not have exactly the attributes {', '.join(sorted(attributes))}"
    for name in attributes:
        if not h5py.h5a.exists(file.id, name.encode()):
            return f"lacks the attribute {name!r}"
        attribute = h5py.h5a.open(file.id, name.encode())
        kind = attribute.get_type()
        plain = isinstance(kind, h5py.h5t.TypeIntegerID | h5py.h5t.TypeFloatID) or (
            isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str()
        )
        if not plain or attribute.shape != () or kind.get_size() > MAX_ATTRIBUTE_BYTES:
            return f"attribute {name!r} is not one number or one short string"
    return None


def _identity_problem(file: h5py.File, identity: Mapping[str, str | int]) -> str | None:
    for name, expected in identity.items():
        found = file.attrs[name]
        if isinstance(found, bytes):
            found = found.decode(errors="replace")
        if found != expected:
            return f"has {name} {found!r} where {expected!r} is expected: it was moved or swapped"
    return None

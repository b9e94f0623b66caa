"""Files made to harm a reader, with valid seals: each is refused for what it is."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from activations.store_cases import HOOK, hdf5_image, overwrite, sealed_image

from saelab.activations.format import DamagedStoreError, hook_path, tokens_path
from saelab.activations.hook_file import hook_file, hook_identity
from saelab.activations.norms import N_BINS, NormRecord
from saelab.activations.prepare import RowPreparer
from saelab.activations.sealed import SealedFile, Trailer
from saelab.activations.store import ActivationStore
from saelab.activations.verify import verify

ROWS, D_IN = 20, 3
VALUES = np.zeros((ROWS, D_IN), np.float32)


def plain(file, *, without=()):
    """Fill in everything that a valid file of the first site has, except `without`."""
    members = {
        "acts": VALUES,
        "xxh3": np.zeros(1, np.uint64),
        "sum": np.zeros(D_IN),
        "sum_sq": np.zeros(D_IN),
        **vars(NormRecord.of(np.zeros(ROWS, np.float32))),
    }
    for name, values in members.items():
        if name not in without:
            file.create_dataset(name, data=values)


def external_link(file, path):
    plain(file, without=["acts"])
    file["acts"] = h5py.ExternalLink(str(path / "outside.h5"), "acts")


def soft_link(file, path):
    plain(file, without=["acts"])
    file["acts"] = h5py.SoftLink("/sum")


def external_storage(file, path):
    plain(file, without=["acts"])
    stored = [(str(path / "outside.h5"), 0, VALUES.nbytes)]
    file.create_dataset("acts", VALUES.shape, np.float32, external=stored)


def virtual(file, path):
    plain(file, without=["acts"])
    layout = h5py.VirtualLayout(VALUES.shape, np.float32)
    layout[:] = h5py.VirtualSource(str(path / "outside.h5"), "acts", VALUES.shape)
    file.create_virtual_dataset("acts", layout)


def filtered(file, path):
    plain(file, without=["acts"])
    file.create_dataset("acts", data=VALUES, compression="gzip")


def variable_length(file, path):
    plain(file, without=["sum"])
    file.create_dataset("sum", (D_IN,), h5py.vlen_dtype(np.float64))


def references(file, path):
    plain(file, without=["sum"])
    file.create_dataset("sum", (D_IN,), h5py.ref_dtype)


def size_bomb(file, path):
    plain(file, without=["acts"])
    file.create_dataset("acts", (2**40, D_IN), np.float32)


def unallocated(file, path):
    plain(file, without=["acts"])
    file.create_dataset("acts", VALUES.shape, np.float32)


def extra_member(file, path):
    plain(file)
    file["more"] = np.zeros(2)


def group(file, path):
    plain(file, without=["acts"])
    file["acts/loop"] = h5py.SoftLink("/acts")


def other_type(file, path):
    plain(file, without=["acts"])
    file["acts"] = VALUES.astype(np.int32)


def long_attribute(file, path):
    plain(file)
    del file.attrs["max_abs"]
    file.attrs["max_abs"] = np.zeros(1000)


def text_attribute(file, path):
    plain(file)
    file.attrs["hook"] = "variable length"


def other_hook(file, path):
    plain(file)
    file.attrs["hook"] = np.bytes_(b"blocks.2.hook_resid_post")


def missing_attribute(file, path):
    plain(file)
    del file.attrs["kind"]


def replaced(file, name, values):
    plain(file, without=[name])
    file[name] = values


def too_many_counts(file, path):
    replaced(file, "norm_counts", np.zeros(2**20, np.uint32))


CASES = {
    too_many_counts: "has shape",
    external_link: "link to somewhere else",
    soft_link: "link to somewhere else",
    external_storage: "stored in another file",
    virtual: "not stored plainly",
    filtered: "not stored plainly",
    variable_length: "unexpected type",
    references: "unexpected type",
    size_bomb: "has shape",
    unallocated: "does not lie inside the file",
    extra_member: "8 members where 7",
    group: "is not a dataset",
    other_type: "unexpected type",
    long_attribute: "not one number or one short string",
    text_attribute: "not one number or one short string",
    other_hook: "moved or swapped",
    missing_attribute: "exactly the attributes",
}


@pytest.fixture
def manifest(store_path):
    return ActivationStore(store_path).manifest


def forge(path, image, manifest, **changes):
    """Replace a hook file by a sealed file around `image`."""
    fields: dict[str, Any] = {
        "unit": 0,
        "rows": ROWS,
        "payload_offset": 0,
        "payload_bytes": VALUES.nbytes,
        "content_digest": bytes.fromhex(manifest.content_digest),
    }
    overwrite(path, sealed_image(image, Trailer(**(fields | changes))))


@pytest.mark.parametrize("fill", CASES, ids=lambda fill: fill.__name__)
def test_a_hostile_hdf5_structure_is_refused(store_path, tmp_path, manifest, fill):
    with h5py.File(tmp_path / "outside.h5", "w") as outside:
        outside["acts"] = VALUES

    def whole(file):
        for name, value in hook_identity(manifest, manifest.sites[0], 0, ROWS).items():
            file.attrs[name] = np.bytes_(value) if isinstance(value, str) else value
        file.attrs["max_abs"] = 0.0
        fill(file, tmp_path)

    forge(hook_path(store_path, manifest.sites[0], 0), hdf5_image(whole), manifest)
    with pytest.raises(DamagedStoreError, match=CASES[fill]):
        ActivationStore(store_path).site(HOOK)


NORMS = {
    "counts": ({"norm_counts": np.full(N_BINS, 2**31, np.uint32)}, "counts other norms"),
    "a row": ({"tail_row": np.array([ROWS], np.uint32)}, "one that it does not have"),
    "no end": ({"tail_norm": np.array([np.inf], np.float32)}, "do not fall, or are none"),
    "a sign": ({"tail_norm": np.array([-1], np.float32)}, "do not fall, or are none"),
}


@pytest.mark.parametrize("case", NORMS)
def test_a_record_of_impossible_norms_is_refused(store_path, manifest, case):
    changes, message = NORMS[case]
    site = manifest.sites[0]
    prepared = RowPreparer("float32").prepare(torch.from_numpy(VALUES), np.arange(ROWS))
    record = replace(NormRecord.of(prepared.norms), **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NormRecord, "of", lambda norms: record)
        parts, _ = hook_file(manifest, site, 0, prepared)
    overwrite(hook_path(store_path, site, 0), b"".join(parts))
    with pytest.raises(DamagedStoreError, match=message):
        ActivationStore(store_path).site(HOOK)


TRAILERS = {
    "more rows than a unit has": ({"rows": 2**60}, "declares"),
    "no row": ({"rows": 0}, "declares"),
    "another unit": ({"unit": 1}, "holds unit 1"),
    "a payload behind the end": ({"payload_offset": 2**62}, "ends beyond the file"),
    "a payload of another size": ({"payload_bytes": 12}, "another size than its rows"),
}


@pytest.mark.parametrize("case", TRAILERS)
def test_an_impossible_trailer_is_refused(store_path, manifest, case):
    changes, message = TRAILERS[case]
    forge(hook_path(store_path, manifest.sites[0], 0), bytes(1000), manifest, **changes)
    with pytest.raises(DamagedStoreError, match=message):
        ActivationStore(store_path).site(HOOK)


def test_bytes_that_are_no_hdf5_file_are_refused(store_path, manifest):
    forge(hook_path(store_path, manifest.sites[0], 0), os.urandom(1000), manifest)
    with pytest.raises(DamagedStoreError, match="not a readable HDF5 file"):
        ActivationStore(store_path).site(HOOK)


def test_a_symbolic_link_in_place_of_a_file_is_refused(store_path, manifest, tmp_path):
    path = hook_path(store_path, manifest.sites[0], 0)
    path.rename(tmp_path / "elsewhere.h5")
    path.symlink_to(tmp_path / "elsewhere.h5")
    with pytest.raises(DamagedStoreError, match="cannot be opened"):
        ActivationStore(store_path).site(HOOK)


@pytest.mark.parametrize("name", ["tokens", "hooks", "hooks/blocks.1.hook_resid_post"])
def test_a_symbolic_link_in_place_of_a_directory_is_refused(store_path, tmp_path, name):
    (store_path / name).rename(tmp_path / "elsewhere")
    (store_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedStoreError, match="not a plain directory"):
        ActivationStore(store_path)
    assert verify(store_path)


def test_a_named_pipe_in_place_of_a_file_does_not_block(store_path):
    path = tokens_path(store_path, 0)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedStoreError, match="not a regular file"):
        ActivationStore(store_path)


def test_a_unit_outside_the_plan_is_refused(store_path):
    tokens_path(store_path, 0).rename(tokens_path(store_path, 3))
    with pytest.raises(DamagedStoreError, match="outside the plan of 3 units"):
        ActivationStore(store_path)


def open_descriptors():
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def test_no_descriptor_is_left_open_by_refused_files(store_path, tmp_path):
    (tmp_path / "short").write_bytes(b"x")
    before = open_descriptors()
    with pytest.raises(DamagedStoreError, match="too short"):
        SealedFile(tmp_path / "short")
    assert open_descriptors() == before

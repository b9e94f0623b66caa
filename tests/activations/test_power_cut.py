"""A power cut after any system call: what was not fsynced is lost, what is committed is whole."""

import os
import shutil
from pathlib import Path

import pytest
from activations.store_cases import make_manifest, write_store

from saelab.activations.verify import verify


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A finished store, and in order what was made durable and what was named."""
    root = tmp_path_factory.mktemp("traced") / "store"
    events: list[tuple[str, Path, Path]] = []
    fsync, rename = os.fsync, Path.replace

    def traced_fsync(descriptor):
        fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append(("fsync", path, path))

    def traced_rename(self, target):
        events.append(("rename", self, Path(target)))
        return rename(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", traced_fsync)
        patch.setattr(Path, "replace", traced_rename)
        write_store(root, make_manifest())
    return root, events


def after_cut(root, events, copy, *, renames_need_fsync):
    """The disk after a power cut behind these events, as unkind as a file system may be.

    The content of files that were not fsynced is lost. Renames last at once, or only once their
    directory was fsynced: a file system may do either.
    """
    shutil.copytree(root, copy)
    kept: dict[Path, bool] = {}
    for i, (kind, source, target) in enumerate(events):
        synced = ("fsync", target.parent, target.parent) in events[i:]
        if kind == "rename" and (synced or not renames_need_fsync):
            kept[target] = ("fsync", source, source) in events[:i]
    for path in root.rglob("*.h5"):
        there = copy / path.relative_to(root)
        if path not in kept:
            there.unlink()
        elif not kept[path]:
            there.unlink()
            there.touch()


@pytest.mark.parametrize("renames_need_fsync", [False, True])
def test_after_every_prefix_each_unit_is_whole_or_absent(traced, tmp_path, renames_need_fsync):
    root, events = traced
    assert sum(kind == "rename" for kind, _, _ in events) >= 12
    complete = []
    for n in range(len(events) + 1):
        copy = tmp_path / str(n)
        after_cut(root, events[:n], copy, renames_need_fsync=renames_need_fsync)
        damages = verify(copy)
        absent = [d.file.startswith("tokens/") and "is missing" in d.problem for d in damages]
        assert all(absent), (n, damages)
        complete.append(not damages)
    assert complete[-1]
    assert not complete[0]

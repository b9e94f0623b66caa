"""A power cut behind any system call of a training: the same command ends as if there was none."""

import os
from pathlib import Path

import pytest
from killed import contents, differing, spread
from training.test_damage import config_of

from saelab.training.loop import train

pytestmark = pytest.mark.unchecked

CUTS = 6


class Disk:
    """What of the files below `root` a power cut leaves, as unkind as a file system may be.

    Content lasts that was fsynced; names last at once, or only once their directory was fsynced.
    """

    def __init__(self, root, patch, *, names_need_fsync):
        self.root = root
        self.names_need_fsync = names_need_fsync
        self.synced: dict[Path, bytes] = {}
        self.waiting: dict[Path, list[tuple[Path, bool]]] = {}
        self.named: dict[Path, bool] = {}
        self.after: list[dict[Path, bytes | None]] = []
        for call, note in {
            "fsync": self.fsync,
            "replace": self.rename,
            "rename": self.rename,
            "unlink": self.remove,
            "rmdir": self.remove,
            "mkdir": self.mkdir,
        }.items():
            patch.setattr(os, call, self.noted(getattr(os, call), note))

    def noted(self, call, note):
        def made(*args, **kwargs):
            result = call(*args, **kwargs)
            note(*args)
            self.after.append(self.left())
            return result

        return made

    def fsync(self, descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_dir():
            for name, there in self.waiting.pop(path, []):
                self.named[name] = there
        else:
            self.synced[path] = path.read_bytes()

    def rename(self, source, target):
        source, target = Path(source), Path(target)
        self.synced[target] = self.synced.pop(source, b"")
        self.name(source, there=False)
        self.name(target, there=True)

    def remove(self, path, *_):
        self.name(Path(path), there=False)

    def mkdir(self, path, *_):
        self.name(Path(path), there=True)

    def name(self, path, *, there):
        if not self.names_need_fsync:
            self.named[path] = there
        self.waiting.setdefault(path.parent, []).append((path, there))

    def left(self):
        """Content by path; None: a directory."""
        last = {path for path, there in self.named.items() if there and path != self.root}
        whole = {
            p
            for p in last
            if all(a in last for a in p.parents if a.is_relative_to(self.root / "run"))
        }
        return {path: self.synced.get(path) for path in whole if path.is_relative_to(self.root)}


@pytest.mark.parametrize("names_need_fsync", [True, False])
def test_after_a_power_cut_the_same_command_continues(small_store, tmp_path, names_need_fsync):
    config, root = config_of(small_store), tmp_path / "cut"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(root, patch, names_need_fsync=names_need_fsync)
        run = train(config, out=root / "run", device="cpu")
    whole = contents(run.path)
    # What was removed may come back.
    assert disk.after[-1].keys() >= {run.path, *run.path.iterdir()}
    files = [path for path in run.path.iterdir() if path.is_file()]
    assert all(disk.after[-1][path] == path.read_bytes() for path in files)
    for n in spread(len(disk.after), CUTS):
        out = tmp_path / str(n)
        for path, content in sorted(disk.after[n].items()):
            there = out / path.relative_to(root)
            if content is None:
                there.mkdir(parents=True)
            else:
                there.write_bytes(content)
        again = train(config, out=out / "run", device="cpu")
        found = [n for n in differing(contents(again.path), whole) if n != "provenance.json"]
        assert found == [], (n, disk.after[n].keys())
